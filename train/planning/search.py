"""The legal plans of a request, and the choice among them. Deterministic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import log

from train.errors import PlanError
from train.planning.lengths import Lengths, busiest_tokens, lengths_of
from train.planning.plan import (
    OFFLOAD,
    OFFLOADED_AT,
    RECOMPUTE,
    Plan,
    require_fp32_sums,
    sums_in_fp32,
)
from train.planning.predict import predict
from train.planning.request import Candidate, Choice, PlanRequest

# How much faster a step must be for more ranks to share a row: what a prediction may be off.
GAIN = 1.05


def choose(request: PlanRequest) -> Choice:
    """Predict every legal plan and choose the fastest that fits, without offload if one does.

    Raises:
        PlanError: pins that no legal plan satisfies.
    """
    if request.pins.zero is not None and request.implementation is None:
        require_fp32_sums(request.pins.zero, request.precision)
    lengths = lengths_of(request.lengths, request.block_size)
    found: list[Candidate] = []
    for sp in _degrees(request):
        found += [predict(request, plan, lengths) for plan in legal(request, lengths, sp)]
        if not _could_gain(request, lengths, found, sp):
            break
    ranked = tuple(sorted(found, key=_rank))
    rejected = Counter(candidate.reason for candidate in ranked if not candidate.fits)
    return Choice(ranked, _best(ranked), None, dict(sorted(rejected.items())))


def feasible(request: PlanRequest) -> bool:
    """Whether any legal plan fits: the smallest micro-batches need least, shared by the most."""
    lengths = lengths_of(request.lengths, request.block_size)
    smallest = request.pins.micro_tokens or lengths.longest
    least = replace(request, pins=replace(request.pins, micro_tokens=smallest))
    degrees = _degrees(request)
    return any(
        predict(least, plan, lengths).fits
        for sp in sorted({degrees[0], degrees[-1]})
        for plan in legal(least, lengths, sp)
    )


def _could_gain(
    request: PlanRequest, lengths: Lengths, found: Sequence[Candidate], sp: int
) -> bool:
    """Whether replicas of more ranks may be faster, or fit where these do not without offload."""
    replicas = request.cluster.gpus // sp
    even = request.batch_size * lengths.mean / replicas
    uneven = busiest_tokens(lengths, request.batch_size, replicas) > GAIN * even
    return uneven or not any(c.fits and c.plan.offload == "none" for c in found)


def _best(ranked: Sequence[Candidate]) -> Candidate | None:
    """Return the first that fits, but with more ranks to a row only where that gains clearly."""
    best: Candidate | None = None
    for sp in sorted({candidate.plan.sp for candidate in ranked}):
        first = next((c for c in ranked if c.fits and c.plan.sp == sp), None)
        if first is None:
            continue
        gains = best is None or (
            OFFLOAD.index(first.plan.offload) < OFFLOAD.index(best.plan.offload)
            or (
                first.plan.offload == best.plan.offload
                and GAIN * first.time.total < best.time.total
            )
        )
        best = first if gains else best
    return best


def _rank(candidate: Candidate) -> tuple[bool, int, float, float, str]:
    """Sort by offload, by speed to half a percent, then by memory and by name, to settle ties.

    Offload needs a compiler and host memory, and is as slow as the host is busy: it comes last.
    """
    offload = OFFLOAD.index(candidate.plan.offload) if candidate.fits else 0
    speed = round(200 * log(candidate.time.total))
    return (not candidate.fits, offload, speed, candidate.memory.total, str(candidate.plan))


def legal(request: PlanRequest, lengths: Lengths, sp: int) -> Iterator[Plan]:
    """Yield every legal plan with `sp` ranks to a row that the pins allow."""
    pins = request.pins
    tp, pp = pins.tp or 1, pins.pp or 1
    dp = request.cluster.gpus // (tp * pp * sp)
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


def _degrees(request: PlanRequest) -> tuple[int, ...]:
    """Return how many ranks may share a row, ascending: parts of hosts, or whole ones.

    Where the other degrees are pinned, or other people's runs are described, it is one rank.

    Raises:
        PlanError: pins that the model or the GPUs do not allow.
    """
    gpus, pins = request.cluster.gpus, request.pins
    tp, pp = pins.tp or 1, pins.pp or 1
    alone = tp * pp > 1 or request.implementation or not request.packable
    found = (pins.sp or 1,) if pins.sp or alone else tuple(_shareable(request.cluster.sizes))
    if gpus % (tp * pp * found[0]):
        raise PlanError(
            f"tp x pp x sp = {tp * pp * found[0]} does not divide the {gpus} GPUs: pin other "
            "degrees"
        )
    if pins.dp is not None and gpus != pins.dp * tp * pp * found[0]:
        found = tuple(sp for sp in found if gpus == pins.dp * tp * pp * sp)
        if not found:
            raise PlanError(
                f"--pin dp={pins.dp} with tp={tp}, pp={pp} does not use {gpus} GPUs: leave dp out, "
                f"it is {gpus // (tp * pp * (pins.sp or 1))}"
            )
    if found[0] > 1 and not request.packable:
        raise PlanError(
            f"--pin sp={found[0]} has ranks share packed rows, but the attention of "
            f"{request.shape.name} cannot be packed: leave it out"
        )
    if request.shape.heads % tp:
        raise PlanError(f"--pin tp={tp} does not divide the model's {request.shape.heads} heads")
    if pp > request.shape.layers:
        raise PlanError(f"--pin pp={pp} is more than the model's {request.shape.layers} layers")
    return found


def _shareable(sizes: tuple[int, ...]) -> Iterator[int]:
    """Yield into how many equal ranks hosts of these sizes divide, or groups of whole hosts."""
    hosts, kinds = len(sizes), set(sizes)
    yield from (sp for sp in range(1, min(kinds) + 1) if all(size % sp == 0 for size in kinds))
    if len(kinds) == 1:
        yield from (sizes[0] * n for n in range(2, hosts + 1) if hosts % n == 0)


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
