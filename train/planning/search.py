"""The legal plans of a request, and the choice among them. Deterministic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import gcd, log

from train.errors import PlanError
from train.planning.lengths import Lengths, busiest_tokens, lengths_of
from train.planning.pins import Pins
from train.planning.plan import (
    OFFLOAD,
    OFFLOADED_AT,
    RECOMPUTE,
    STAGED_ZERO,
    Plan,
    read_sizes,
    require_fp32_sums,
    require_hpz,
    require_stages,
    sums_in_fp32,
)
from train.planning.predict import predict
from train.planning.request import Candidate, Choice, PlanRequest
from train.planning.tensor import degrees, require_tensor

# How much faster a step must be for more ranks to share a row: what a prediction may be off.
GAIN = 1.05
# Stages, and tensor ranks, that are tried.
PIPELINES = (2, 4, 8, 16)
TENSORS = (2, 4, 8)
# Ranks to a row that are tried one by one inside hosts; beyond comes the whole host.
LARGEST_PART = 16


@dataclass(frozen=True)
class Replicas:
    """How many there are, of how many ranks; `sizes` as in `Plan.replicas`, where they differ.

    Each is `pp` stages of so many ranks, and each of these `tp` tensor ranks.
    """

    count: int
    ranks: int = 1
    sizes: str = ""
    pp: int = 1
    tp: int = 1

    @staticmethod
    def of(sizes: Sequence[int]) -> Replicas:
        """Return those of these sizes."""
        equal = len(set(sizes)) == 1
        return Replicas(len(sizes), min(sizes), "" if equal else "+".join(map(str, sizes)))


def choose(request: PlanRequest) -> Choice:
    """Predict every legal plan and choose the fastest that fits, without offload if one does.

    Raises:
        PlanError: pins that no legal plan satisfies.
    """
    if request.pins.zero is not None and request.implementation is None:
        require_fp32_sums(request.pins.zero, request.precision)
    if pins_copy := request.pins.hpz:
        zero, offload = request.pins.zero, request.pins.offload or "none"
        require_hpz(pins_copy, 3 if zero is None else zero, offload, request.cluster.gpus)
    lengths = lengths_of(request.lengths, request.block_size)
    found: list[Candidate] = []
    for replicas in _layouts(request):
        found += [predict(request, plan, lengths) for plan in legal(request, lengths, replicas)]
        if not _could_gain(request, lengths, found, replicas.count):
            break
    for replicas in _divided(request):
        found += [predict(request, plan, lengths) for plan in legal(request, lengths, replicas)]
    ranked = tuple(sorted(found, key=_rank))
    rejected = Counter(candidate.reason for candidate in ranked if not candidate.fits)
    return Choice(ranked, _best(ranked), None, dict(sorted(rejected.items())))


def feasible(request: PlanRequest) -> bool:
    """Whether any legal plan fits: the smallest micro-batches need least, shared by the most."""
    lengths = lengths_of(request.lengths, request.block_size)
    smallest = request.pins.micro_tokens or lengths.longest
    least = replace(request, pins=replace(request.pins, micro_tokens=smallest))
    layouts = _layouts(request)
    return any(
        predict(least, plan, lengths).fits
        for replicas in layouts[:: max(1, len(layouts) - 1)]
        for plan in legal(least, lengths, replicas)
    )


def _could_gain(
    request: PlanRequest, lengths: Lengths, found: Sequence[Candidate], replicas: int
) -> bool:
    """Whether fewer, larger replicas may be faster, or fit where these do not without offload."""
    even = request.batch_size * lengths.mean / replicas
    uneven = busiest_tokens(lengths, request.batch_size, replicas) > GAIN * even
    return uneven or not any(c.fits and c.plan.offload == "none" for c in found)


def _best(ranked: Sequence[Candidate]) -> Candidate | None:
    """Return the first that fits; what else there is in a plan must gain clearly.

    That is more stages or tensor ranks, more ranks to a row, or a second copy of the weights.
    """
    best: Candidate | None = None
    firsts: dict[tuple[int, int, int, int], Candidate] = {}
    for candidate in ranked:
        plan = candidate.plan
        if candidate.fits:
            firsts.setdefault((plan.pp, plan.tp, -plan.dp, plan.hpz), candidate)
    for _, first in sorted(firsts.items(), key=lambda item: item[0]):
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


def legal(request: PlanRequest, lengths: Lengths, replicas: Replicas) -> Iterator[Plan]:
    """Yield every legal plan with these replicas that the pins allow."""
    pins = request.pins
    tp, pp, dp = replicas.tp, replicas.pp, replicas.count
    ours = request.implementation is None
    for zero in range(STAGED_ZERO + 1 if ours and pp > 1 else 4):
        if ours and not sums_in_fp32(zero, request.precision):
            continue
        if pins.zero not in (None, zero) or (zero == 3 and request.quantize):
            continue
        for offload in OFFLOADED_AT[zero]:
            # A CPU rank's memory is the host's already, and stages offload nothing, nor do tensor
            # ranks unless they are asked to.
            here = request.cluster.gpu.is_cpu or (ours and pp * tp > 1)
            if (pins.offload or ("none" if here else offload)) != offload:
                continue
            for recompute in RECOMPUTE:
                if pins.recompute not in (None, recompute):
                    continue
                step = request.batch_size * lengths.mean
                for hpz, tokens in product(
                    _copies(request, zero, offload) if tp == 1 else (1,),
                    _capacities(request, lengths, dp),
                ):
                    micros = accumulation(step, dp, tokens, lengths)
                    yield Plan(zero, tokens, recompute, offload, dp, tp, pp, replicas.ranks,
                               micros, replicas.sizes, hpz, pins.balance or "on")  # fmt: skip


def _copies(request: PlanRequest, zero: int, offload: str) -> tuple[int, ...]:
    """Return the ranks that may keep a second copy of the weights: 1 (none has), or a host's."""
    pins, sizes = request.pins, request.cluster.sizes
    if pins.hpz is not None:
        return (pins.hpz,) if pins.hpz == 1 or (zero == 3 and offload != "all") else ()
    alone = len(sizes) == 1 or pins.tp or pins.pp or request.implementation
    inside = 1 if alone or zero < 3 or offload != "none" else gcd(*sizes)
    return tuple(sorted({1, inside}))


def accumulation(tokens: float, dp: int, capacity: int, lengths: Lengths) -> int:
    """Return the expected number of micro-batches per replica for a step of `tokens`."""
    if lengths.mean == lengths.longest:
        per_micro = capacity // lengths.longest
        samples = round(tokens / lengths.longest)
        return max(1, -(-samples // (per_micro * dp)))
    return max(1, -(-int(tokens) // int(dp * capacity * 0.97)))


def _layouts(request: PlanRequest) -> tuple[Replicas, ...]:
    """Return the replicas to try, smaller ones first; of one rank where other degrees are pinned.

    Other people's runs have them as pinned, too.

    Raises:
        PlanError: pins that the model or the GPUs do not allow.
    """
    gpus, pins = request.cluster.gpus, request.pins
    tp, pp, sp = pins.tp or 1, pins.pp or 1, pins.sp or 1
    require_tensor(request, tp)
    if gpus % (tp * pp * sp):
        others = "+".join(map(str, _parts(gpus, max(1, gpus // (tp * pp * sp)))))
        raise PlanError(
            f"tp x pp x sp = {tp * pp * sp} does not divide the {gpus} GPUs: pin other degrees"
            f"{_stages_allowed(request) if pp > 1 else ''}"
            f"{f', or replicas={others}' if tp * pp == 1 and gpus <= LARGEST_PART else ''}"
        )
    found: tuple[Replicas, ...] = (Replicas(gpus // (tp * pp * sp), sp, pp=pp, tp=tp),)
    if pins.replicas:
        found = (Replicas.of(_pinned_sizes(pins, gpus)),)
    elif not (pins.sp or tp * pp > 1 or request.implementation) and request.packable:
        found = tuple(_shareable(request.cluster.sizes))
    if pins.dp is not None:
        least, found = found[0], tuple(r for r in found if r.count == pins.dp)
        if not found:
            raise PlanError(
                f"--pin dp={pins.dp} with tp={tp}, pp={pp}, sp={sp} does not use {gpus} GPUs: "
                f"leave dp out, it is {least.count}"
            )
    if found[0].count < gpus // (tp * pp) and not request.packable:
        raise PlanError(
            f"--pin {f'replicas={pins.replicas}' if pins.replicas else f'sp={sp}'} has ranks share "
            f"packed rows, but the attention of {request.shape.name} cannot be packed: leave it out"
        )
    _require_stages(request, pp)
    return found


def _stages_allowed(request: PlanRequest) -> str:
    """Return the numbers of stages that the GPUs and the layers allow, in words."""
    pins, gpus = request.pins, request.cluster.gpus
    rest = (pins.tp or 1) * (pins.sp or 1)
    most = min(request.shape.layers, gpus)
    allowed = [str(n) for n in range(1, most + 1) if gpus % (n * rest) == 0]
    return f", pp may be {' or '.join(allowed)}" if allowed else ""


def _require_stages(request: PlanRequest, pp: int) -> None:
    """Refuse a number of stages that the model cannot be cut into.

    Raises:
        PlanError: it says which there may be.
    """
    shape = request.shape
    if pp > shape.layers:
        raise PlanError(
            f"--pin pp={pp} is more than the model's {shape.layers} layers: pin 1 to {shape.layers}"
        )
    if request.implementation is not None or pp == 1:
        return
    if not _can_be_cut(request):
        why = "parts cannot be told apart" if request.packable else "attention cannot be packed"
        why = "table of positions is of no stage" if shape.positions else why
        why = "base is packed in 4 bits" if request.quantize else why
        raise PlanError(
            f"--pin pp={pp} cuts the model into stages, but {shape.name}'s {why}: leave it out, "
            "only pp=1 is possible"
        )
    require_stages(pp, request.pins.zero, request.pins.offload)


def _divided(request: PlanRequest) -> Iterator[Replicas]:
    """Yield the stages and tensor ranks to try, with one rank to a row, where no pin says more."""
    pins, gpus = request.pins, request.cluster.gpus
    fixed = {"tp", "pp", "sp", "replicas", "hpz"} & pins.words().keys() - _ones(pins)
    if fixed or request.implementation is not None or request.cluster.speeds:
        return
    unoffloaded = pins.offload in (None, "none")
    stages = pins.zero in (None, *range(STAGED_ZERO + 1)) and unoffloaded
    cuts = stages and _can_be_cut(request) and pins.pp is None
    staged = [pp for pp in PIPELINES if pp <= request.shape.layers] if cuts else []
    possible = degrees(request) if unoffloaded and pins.tp is None else ()
    for pp, tp in product((1, *staged), (1, *(tp for tp in TENSORS if tp in possible))):
        count, rest = divmod(gpus, pp * tp)
        if pp * tp > 1 and rest == 0 and pins.dp in (None, count):
            yield Replicas(count, pp=pp, tp=tp)


def _can_be_cut(request: PlanRequest) -> bool:
    """Whether stages of the model can be trained at all; a table of positions is of no stage."""
    whole = request.packable and request.divisible and request.shape.positions == 0
    return whole and not request.quantize


def _ones(pins: Pins) -> set[str]:
    """Return the degrees that are pinned to 1."""
    return {key for key in ("tp", "pp", "sp", "hpz") if getattr(pins, key) == 1}


def _pinned_sizes(pins: Pins, gpus: int) -> tuple[int, ...]:
    sizes = read_sizes(pins.replicas or "")
    if sum(sizes) != gpus or pins.tp or pins.pp or pins.sp:
        raise PlanError(
            f"--pin replicas={pins.replicas} is {sum(sizes)} GPUs, but there are {gpus}: give the "
            "ranks of each replica, as 4+3 for 7, and neither tp, pp nor sp"
        )
    return sizes


def _shareable(hosts: tuple[int, ...]) -> Iterator[Replicas]:
    """Yield replicas of one rank, of equal parts of hosts (or nearly), and of whole hosts."""
    yield Replicas(sum(hosts))
    tried = {sum(hosts)}
    for ranks in (*range(2, min(max(hosts), LARGEST_PART) + 1), max(hosts)):
        counts = [max(1, size // ranks) for size in hosts]
        if sum(counts) not in tried:
            tried.add(sum(counts))
            parts = (_parts(size, count) for size, count in zip(hosts, counts, strict=True))
            yield Replicas.of([part for host in parts for part in host])
    if len(set(hosts)) == 1:
        whole = [n for n in range(2, len(hosts) + 1) if len(hosts) % n == 0]
        yield from (Replicas(len(hosts) // n, hosts[0] * n) for n in whole)


def _parts(size: int, count: int) -> list[int]:
    """Return so many parts of a host, as equal as can be, the larger first."""
    return [size // count + (part < size % count) for part in range(count)]


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
