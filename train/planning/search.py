"""The legal plans of a request, and the choice among them. Deterministic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from math import log

from train.errors import PlanError
from train.planning.plan import (
    OFFLOAD,
    OFFLOADED_AT,
    RECOMPUTE,
    Plan,
    require_fp32_sums,
    sums_in_fp32,
)
from train.planning.predict import predict
from train.planning.request import Candidate, Choice, Lengths, PlanRequest, lengths_of


def choose(request: PlanRequest) -> Choice:
    """Predict every legal plan and choose the fastest that fits, without offload if one does.

    Raises:
        PlanError: pins that no legal plan satisfies.
    """
    if request.pins.zero is not None and request.implementation is None:
        require_fp32_sums(request.pins.zero, request.precision)
    lengths = lengths_of(request.lengths, request.block_size)
    found = [predict(request, plan, lengths) for plan in legal(request, lengths)]
    ranked = tuple(sorted(found, key=_rank))
    chosen = ranked[0] if ranked[0].fits else None
    rejected = Counter(candidate.reason for candidate in ranked if not candidate.fits)
    return Choice(ranked, chosen, None, dict(sorted(rejected.items())))


def feasible(request: PlanRequest) -> bool:
    """Whether any legal plan fits: the smallest micro-batches need least."""
    lengths = lengths_of(request.lengths, request.block_size)
    smallest = request.pins.micro_tokens or lengths.longest
    least = replace(request, pins=replace(request.pins, micro_tokens=smallest))
    return any(predict(least, plan, lengths).fits for plan in legal(least, lengths))


def _rank(candidate: Candidate) -> tuple[bool, int, float, float, str]:
    """Sort by offload, by speed to half a percent, then by memory and by name, to settle ties.

    Offload needs a compiler and host memory, and is as slow as the host is busy: it comes last.
    """
    offload = OFFLOAD.index(candidate.plan.offload) if candidate.fits else 0
    speed = round(200 * log(candidate.time.total))
    return (not candidate.fits, offload, speed, candidate.memory.total, str(candidate.plan))


def legal(request: PlanRequest, lengths: Lengths) -> Iterator[Plan]:
    """Yield every legal plan that the pins allow."""
    dp, tp, pp, sp = _degrees(request)
    pins = request.pins
    for zero in range(4):
        if request.implementation is None and not sums_in_fp32(zero, request.precision):
            continue
        if pins.zero not in (None, zero):
            continue
        for offload in OFFLOADED_AT[zero]:
            # A CPU rank's memory is the host's already.
            if (pins.offload or ("none" if request.cluster.gpu.is_cpu else offload)) != offload:
                continue
            for recompute in RECOMPUTE:
                if pins.recompute not in (None, recompute):
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
    pins = request.pins
    tp, pp, sp = pins.tp or 1, pins.pp or 1, pins.sp or 1
    if gpus % (tp * pp * sp):
        raise PlanError(
            f"tp x pp x sp = {tp * pp * sp} does not divide the {gpus} GPUs: pin other degrees"
        )
    dp = gpus // (tp * pp * sp)
    if pins.dp not in (None, dp):
        raise PlanError(
            f"--pin dp={pins.dp} with tp={tp}, pp={pp}, sp={sp} does not use "
            f"{gpus} GPUs: leave dp out, it is {dp}"
        )
    if sp > 1 and not request.packable:
        raise PlanError(
            f"--pin sp={sp} has ranks share packed rows, but the attention of "
            f"{request.shape.name} cannot be packed: leave it out"
        )
    if request.shape.heads % tp:
        raise PlanError(f"--pin tp={tp} does not divide the model's {request.shape.heads} heads")
    if pp > request.shape.layers:
        raise PlanError(f"--pin pp={pp} is more than the model's {request.shape.layers} layers")
    return dp, tp, pp, sp


def _capacities(request: PlanRequest, lengths: Lengths, dp: int) -> tuple[int, ...]:
    """Return the capacities to try: whole samples, in steps of about a third."""
    pinned = request.pins.micro_tokens
    if pinned is not None:
        if pinned < lengths.longest:
            raise PlanError(
                f"--pin micro_tokens={pinned} cannot hold the longest sample of "
                f"{lengths.longest} tokens: pin at least that, or lower --block-size"
            )
        return (pinned,)
    most = max(1, -(-request.batch_size // dp))
    counts = [
        n for n in (*range(1, 9), *(2**k * m for k in range(2, 9) for m in (3, 4))) if n < most
    ]
    return tuple(lengths.longest * count for count in sorted({*counts, min(most, 1024)}))
