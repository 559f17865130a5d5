"""What a plan costs: its memory, its time, whether it fits."""

from __future__ import annotations

from collections.abc import Iterable

from train.planning.duration import RATES, Rates, duration
from train.planning.lengths import Lengths
from train.planning.memory import footprint
from train.planning.plan import Plan
from train.planning.request import Candidate, PlanRequest
from train.planning.shape import Shape

# A plan fits if its predicted peak leaves this share free: the model's own error on traces and
# live tensors is below 3 %, and published peaks scatter by a few more.
MARGIN = 0.05


def predict(request: PlanRequest, plan: Plan, lengths: Lengths, rates: Rates = RATES) -> Candidate:
    """Return the predicted cost of one plan."""
    found = footprint(request, plan, lengths)
    time = duration(request, plan, lengths, rates)
    tokens = request.batch_size * lengths.mean
    adapter_rank = request.lora.r if request.lora else None
    useful = useful_flops(request.shape, lengths.mean_square / lengths.mean, adapter_rank)
    reason = _reason(request, found.gpu.total, found.host)
    return Candidate(
        plan=plan,
        memory=found.gpu,
        host_memory=found.host,
        time=time,
        tokens_per_s=tokens / time.total,
        mfu=useful * tokens / time.total / request.cluster.power / request.cluster.gpu.peak,
        fits=not reason,
        reason=reason,
    )


def useful_flops(shape: Shape, length: float, adapter_rank: int | None) -> float:
    """Return the FLOP of one real token of a sample of `length` tokens that count for MFU.

    6 per token and parameter, without the input embedding; with an adapter 4 per frozen and 6 per
    trained one; causal attention counted exactly, forward once and backward twice. Recomputation
    is not counted.
    """
    attention = 3 * shape.attention_flops(length)
    parameters = shape.parameters_without_input
    if adapter_rank is None:
        return 6 * parameters + attention
    return 4 * parameters + 6 * shape.adapter_parameters(adapter_rank) + attention


def step_flops(shape: Shape, lengths: Iterable[int], adapter_rank: int | None = None) -> float:
    """Return the FLOP of one optimizer step over samples of these lengths, in tokens."""
    return sum(length * useful_flops(shape, length, adapter_rank) for length in lengths)


def sample_cost(shape: Shape, length: float) -> float:
    """Return the relative time of one sample, in FLOP of its forward pass."""
    return length * (shape.matmul_flops() + shape.attention_flops(length))


def _reason(request: PlanRequest, gpu: float, host: float) -> str:
    if gpu > (1 - MARGIN) * request.cluster.gpu.memory:
        return "GPU memory"
    return "host memory" if host > (1 - MARGIN) * request.cluster.host_memory else ""
