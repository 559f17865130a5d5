"""The legal plans of a request, and the choice among them. Deterministic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from math import log

from train.errors import PlanError
from train.planning.memory import described
from train.planning.pins import check_pins
from train.planning.plan import OFFLOAD, RECOMPUTE, Plan
from train.planning.predict import predict
from train.planning.request import Candidate, Choice, Lengths, PlanRequest, lengths_of


def choose(request: PlanRequest) -> Choice:
    """Predict every legal plan and choose the fastest that fits.

    Raises:
        PlanError: a pin with an impossible value, or pins that no legal plan satisfies.
    """
    check_pins(request.pins)
    lengths = lengths_of(request.lengths, request.block_size)
    found = [predict(request, plan, lengths) for plan in legal(request, lengths)]
    if not found:
        raise PlanError(_contradiction(request))
    ranked = tuple(sorted(found, key=_rank))
    chosen = ranked[0] if ranked[0].fits else None
    rejected = Counter(candidate.reason for candidate in ranked if not candidate.fits)
    return Choice(ranked, chosen, None, dict(sorted(rejected.items())))


def feasible(request: PlanRequest) -> bool:
    """Whether any legal plan fits: the smallest micro-batches need least."""
    lengths = lengths_of(request.lengths, request.block_size)
    pins = {"micro_tokens": str(lengths.longest)} | dict(request.pins)
    least = replace(request, pins=pins)
    return any(predict(least, plan, lengths).fits for plan in legal(least, lengths))


def _rank(candidate: Candidate) -> tuple[bool, float, float, str]:
    """Sort by speed to half a percent, then by memory, then by name, so that ties are settled."""
    speed = round(200 * log(candidate.time.total))
    return (not candidate.fits, speed, candidate.memory.total, str(candidate.plan))


def legal(request: PlanRequest, lengths: Lengths) -> Iterator[Plan]:
    """Yield every legal plan that the pins allow."""
    dp, tp, pp, sp = _degrees(request)
    pins = request.pins
    for zero in range(4):
        unsafe = zero == 0 and request.precision == "bf16" and not described(request)
        if unsafe or pins.get("zero", str(zero)) != str(zero):
            continue
        for offload in OFFLOAD[: (1, 2, 2, 3)[zero]]:
            if pins.get("offload", offload) != offload:
                continue
            if request.cluster.gpu.is_cpu and offload != pins.get("offload", "none"):
                continue  # a CPU rank's memory is the host's already
            for recompute in RECOMPUTE:
                if pins.get("recompute", recompute) != recompute:
                    continue
                for tokens in _capacities(request, lengths, dp):
                    step = request.batch_size * lengths.mean
                    yield Plan(zero, tokens, recompute, offload, dp, tp, pp, sp,
                               accumulation(step, dp, tokens, lengths))  # fmt: skip


def accumulation(tokens: float, dp: int, capacity: int, lengths: Lengths) -> int:
    """Return the expected number of micro-batches per replica for a step of `tokens`."""
    if lengths.mean == lengths.longest:
        per_micro = capacity // lengths.longest
        samples = round(tokens / lengths.longest)
        return max(1, -(-samples // (per_micro * dp)))
    return max(1, -(-int(tokens) // int(dp * capacity * 0.97)))


def _degrees(request: PlanRequest) -> tuple[int, int, int, int]:
    """Return dp, tp, pp, sp: all GPUs go to data unless a pin says otherwise."""
    gpus = request.cluster.gpus
    tp, pp, sp = (int(request.pins.get(key, "1")) for key in ("tp", "pp", "sp"))
    if gpus % (tp * pp * sp):
        raise PlanError(
            f"tp x pp x sp = {tp * pp * sp} does not divide the {gpus} GPUs: pin other degrees"
        )
    dp = gpus // (tp * pp * sp)
    if int(request.pins.get("dp", dp)) != dp:
        raise PlanError(
            f"--pin dp={request.pins['dp']} with tp={tp}, pp={pp}, sp={sp} does not use "
            f"{gpus} GPUs: leave dp out, it is {dp}"
        )
    if request.shape.heads % tp:
        raise PlanError(f"--pin tp={tp} does not divide the model's {request.shape.heads} heads")
    if pp > request.shape.layers:
        raise PlanError(f"--pin pp={pp} is more than the model's {request.shape.layers} layers")
    return dp, tp, pp, sp


def _capacities(request: PlanRequest, lengths: Lengths, dp: int) -> tuple[int, ...]:
    """Return the capacities to try: whole samples, in steps of about a third."""
    pinned = request.pins.get("micro_tokens")
    if pinned is not None:
        if int(pinned) < lengths.longest:
            raise PlanError(
                f"--pin micro_tokens={pinned} cannot hold the longest sample of "
                f"{lengths.longest} tokens: pin at least that, or lower --block-size"
            )
        return (int(pinned),)
    most = max(1, -(-request.batch_size // dp))
    counts = [
        n for n in (*range(1, 9), *(2**k * m for k in range(2, 9) for m in (3, 4))) if n < most
    ]
    return tuple(lengths.longest * count for count in sorted({*counts, min(most, 1024)}))


def _contradiction(request: PlanRequest) -> str:
    pins = ", ".join(f"{key}={value}" for key, value in sorted(request.pins.items()))
    unsafe = request.precision == "bf16" and not described(request)
    if request.pins.get("zero") == "0" and unsafe:
        return (
            "ZeRO stage 0 is not offered in bf16, where it would accumulate in bf16: "
            "pin zero to 1, 2 or 3, or use --precision fp32"
        )
    return (
        f"the pins {pins} contradict each other: offload=optimizer needs zero=1, 2 or 3, "
        "and offload=all needs zero=3"
    )
