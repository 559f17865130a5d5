"""What a plan costs: its memory, its time, whether it fits."""

from __future__ import annotations

from train.planning.plan import Plan
from train.planning.request import Candidate, Duration, Lengths, Memory, Request


def predict(request: Request, plan: Plan, lengths: Lengths) -> Candidate:
    """Return the predicted cost of one plan."""
    shape, gpu = request.shape, request.cluster.gpu
    size = 2 if request.precision == "bf16" else 4
    trained = shape.parameters
    if request.lora is not None:
        trained = shape.adapter_parameters(request.lora.r)
    frozen = shape.parameters - trained if request.lora is not None else 0
    n = plan.dp
    share = (1, 1, 1, n)[plan.zero]
    weights = size * (trained + frozen) / share
    gradients = 4.0 * trained / (1, 1, n, n)[plan.zero]
    optimizer = (12.0 if size == 2 else 8.0) * trained / (n if plan.zero else 1)
    host = 0.0
    if plan.offload != "none":
        host, optimizer = optimizer * plan.gpus / len(request.cluster.sizes), 0.0
    per_layer = {"none": 34.0, "selective": 16.0, "full": 2.0}[plan.recompute]
    tokens = plan.micro_tokens
    activations = per_layer * shape.hidden * shape.layers * tokens
    logits = 10.0 * tokens * shape.vocab * request.loss_fraction
    memory = Memory(weights, gradients, optimizer, activations, logits, 1e9, 2e9)
    flops = shape.matmul_flops() + shape.attention_flops(lengths.mean)
    step = request.batch_size * lengths.mean
    passes = 4 if plan.recompute == "full" else 3
    compute = passes * flops * step / plan.gpus / (0.8 * gpu.achievable)
    volume = (3 * plan.accumulation if plan.zero == 3 else 3) * size * trained
    communication = 0.0 if n == 1 else 0.3 * volume / min(gpu.link, request.cluster.nic)
    offload = host / request.cluster.per_host / gpu.host_link
    time = Duration(compute, communication, 0.0, offload)
    fits = memory.total < 0.95 * gpu.memory and host < request.cluster.host_memory
    reason = "" if fits else "GPU memory" if memory.total >= 0.95 * gpu.memory else "host memory"
    mfu = 3 * flops * step / time.total / plan.gpus / gpu.peak
    return Candidate(plan, memory, host, time, step / time.total, mfu, fits, reason)
