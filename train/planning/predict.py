"""What a plan costs: its memory, its time, whether it fits."""

from __future__ import annotations

from train.planning.duration import RATES, Rates, duration
from train.planning.memory import footprint
from train.planning.plan import Plan
from train.planning.request import Candidate, Lengths, Request

# A plan fits if its predicted peak leaves this share free: the model's own error on traces and
# live tensors is below 3 %, and published peaks scatter by a few more.
MARGIN = 0.05


def predict(request: Request, plan: Plan, lengths: Lengths, rates: Rates = RATES) -> Candidate:
    """Return the predicted cost of one plan."""
    found = footprint(request, plan, lengths)
    time = duration(request, plan, lengths, rates)
    tokens = request.batch_size * lengths.mean
    reason = _reason(request, found.gpu.total, found.host)
    return Candidate(
        plan=plan,
        memory=found.gpu,
        host_memory=found.host,
        time=time,
        tokens_per_s=tokens / time.total,
        mfu=useful_flops(request, lengths) * tokens / time.total / plan.gpus / _peak(request),
        fits=not reason,
        reason=reason,
    )


def useful_flops(request: Request, lengths: Lengths) -> float:
    """FLOP per real token that count for MFU: recomputation does not, nor the input embedding."""
    shape = request.shape
    attention = 3 * shape.attention_flops(lengths.mean_square / lengths.mean)
    matrices = shape.matmul_flops() / 2
    if request.lora is None:
        return 6 * matrices + attention
    return 4 * matrices + 6 * shape.adapter_parameters(request.lora.r) + attention


def _peak(request: Request) -> float:
    return request.cluster.gpu.peak


def _reason(request: Request, gpu: float, host: float) -> str:
    if gpu > (1 - MARGIN) * request.cluster.gpu.memory:
        return "GPU memory"
    return "host memory" if host > (1 - MARGIN) * request.cluster.host_memory else ""
