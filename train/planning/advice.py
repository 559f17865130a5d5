"""What would help where nothing fits; what a pin costs; where more GPUs stop helping."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from train.config import LoraConfig
from train.planning.hardware import GPUS, Gpu
from train.planning.pins import Pins
from train.planning.request import Choice, PlanRequest
from train.planning.search import choose, feasible
from train.text import GIB

PIN_COST = 0.05
WORTHWHILE = 0.7


def with_advice(request: PlanRequest, choice: Choice) -> Choice:
    """Return the choice with `nearest` told, if nothing fits."""
    if choice.chosen is not None:
        return choice
    return replace(choice, nearest=nearest(request, choice))


@dataclass(frozen=True)
class Lack:
    """What the smallest plan lacks: `reason` as in a candidate, bytes it needs, bytes there are."""

    reason: str
    need: float
    have: float


def smallest(request: PlanRequest, choice: Choice) -> Lack:
    """Return what the plan that needs least would need."""
    least = min(choice.candidates, key=lambda candidate: candidate.memory.total)
    if least.reason == "host memory":
        return Lack(least.reason, least.host_memory, request.cluster.host_memory)
    return Lack(least.reason, least.memory.total, request.cluster.gpu.memory)


def nearest(request: PlanRequest, choice: Choice) -> str:
    """Return one sentence: by how much nothing fits, and what would."""
    least = smallest(request, choice)
    where = "each host" if least.reason == "host memory" else f"each {request.cluster.gpu.name}"
    lacking = (
        f"nothing fits: the smallest plan needs {least.need / GIB:.1f} GiB on {where}, "
        f"which has {least.have / GIB:.1f}, and a twentieth stays free"
    )
    found = [text for text, changed in _changes(request) if feasible(changed)]
    found = found or [text for text, changed in _pairs(request) if feasible(changed)]
    return f"{lacking}; {' or '.join(found[:4]) or 'use a smaller model'}"


def _changes(request: PlanRequest) -> Iterator[tuple[str, PlanRequest]]:
    """Yield what could be changed, the smallest of each kind first."""
    free = _unpinned(request)
    if free is not request:
        yield "drop the pins", free
    more = _more_gpus(request)
    if more is not None:
        yield f"use {more.cluster.gpus} GPUs", more
    bigger = next(_bigger_gpus(request), None)
    if bigger is not None:
        yield f"use {bigger.cluster.gpu.name}", bigger
    if request.lora is None:
        yield "train an adapter with --use-lora", _adapted(request)
    shorter = _shorter(request)
    if shorter is not None:
        yield f"use --block-size {shorter.block_size}", shorter


def _pairs(request: PlanRequest) -> Iterator[tuple[str, PlanRequest]]:
    """Yield two changes at once, for where no single one is enough."""
    free = _unpinned(request)
    adapted = _adapted(free)
    for start, words in ((free, ""), (adapted, " and train an adapter with --use-lora")):
        if words and request.lora is not None:
            return
        for most in _flavors(start):
            more = most if feasible(most) else _more_gpus(most)
            if more is not None:
                yield f"use {more.cluster.gpus} x {more.cluster.gpu.name}{words}", more
                break
        more = _more_gpus(start)
        if words and more is not None:
            yield f"use {more.cluster.gpus} GPUs{words}", more


def _unpinned(request: PlanRequest) -> PlanRequest:
    pins = request.pins
    free = Pins(sequence=pins.sequence, shards=pins.shards, balance=pins.balance)
    return replace(request, pins=free) if request.pins != free else request


def _adapted(request: PlanRequest) -> PlanRequest:
    return replace(request, lora=request.lora or LoraConfig(16, 32, 0.0))


def _more_gpus(request: PlanRequest) -> PlanRequest | None:
    cluster = request.cluster
    for factor in (2, 4, 8, 16, 32, 64):
        more = replace(request, cluster=cluster.times(factor))
        if request.pins.dp is None and feasible(more):
            return more
    return None


def _bigger_gpus(request: PlanRequest) -> Iterator[PlanRequest]:
    return (changed for changed in _flavors(request) if feasible(changed))


def _flavors(request: PlanRequest) -> Iterator[PlanRequest]:
    """Yield the request on larger GPUs: the same vendor's first, the smallest first."""
    cluster = request.cluster
    here = cluster.gpu.name.startswith("MI")
    # A card for desks, in a host without a fast network, is no advice.
    servers = [gpu for gpu in GPUS if gpu.nic >= 2e9]
    larger = [gpu for gpu in servers if gpu.memory > 1.05 * cluster.gpu.memory]
    if cluster.gpu.is_cpu:
        return
    order = {gpu.name: place for place, gpu in enumerate(GPUS)}
    for gpu in sorted(
        larger,
        key=lambda g: (g.name.startswith("MI") != here, round(g.memory / GIB), order[g.name]),
    ):
        yield replace(request, cluster=cluster.all_of(gpu))


def _shorter(request: PlanRequest) -> PlanRequest | None:
    block = request.block_size // 2
    while block >= 128:
        changed = replace(request, block_size=block)
        if feasible(changed):
            return changed
        block //= 2
    return None


def pin_cost(request: PlanRequest, choice: Choice) -> str | None:
    """Return what the pins cost, where that is more than 5 % of a step."""
    free = _unpinned(request)
    if choice.chosen is None or free is request:
        return None
    best = choose(free).chosen
    if best is None:
        return None
    cost = choice.chosen.time.total / best.time.total - 1
    if cost <= PIN_COST:
        return None
    words = request.pins.words().items() - free.pins.words().items()
    pins = ", ".join(f"{key}={value}" for key, value in sorted(words))
    return (
        f"the pins {pins} cost {100 * cost:.0f} % of a step's time: unpinned, "
        f"zero={best.plan.zero} recompute={best.plan.recompute} "
        f"micro_tokens={best.plan.micro_tokens} sp={best.plan.replicas or best.plan.sp} "
        f"tp={best.plan.tp} pp={best.plan.pp} would be chosen"
    )


def unknown_gpu(gpu: Gpu) -> str | None:
    """Return what to do about a device whose rates are not known."""
    if gpu.is_cpu or not gpu.assumed:
        return None
    return (
        f"the table has no '{gpu.name}': its memory was found, its rates are assumed to be "
        f"{gpu.assumed}, and MFU is left out; 'anyrank plan --calibrate' measures them"
    )


def scaling_warning(request: PlanRequest, choice: Choice) -> str | None:
    """Return a warning where twice the GPUs would give much less than twice the speed."""
    if choice.chosen is None or {"dp", "tp", "pp", "sp", "replicas"} & request.pins.words().keys():
        return None
    cluster, plan = request.cluster, choice.chosen.plan
    if request.batch_size < plan.dp:
        idle = plan.gpus - sum(plan.sizes[: request.batch_size]) * plan.tp * plan.pp
        return (
            f"the batch of {request.batch_size} samples leaves {idle} of {cluster.gpus} GPUs "
            "without work: use fewer"
        )
    double = choose(replace(request, cluster=cluster.times(2))).chosen
    if double is None:
        return None
    gain = choice.chosen.time.total / double.time.total
    if gain >= 2 * WORTHWHILE:
        return None
    return (
        f"more GPUs hardly help with this batch: {2 * cluster.gpus} would be {gain:.1f} times "
        f"as fast as {cluster.gpus}"
    )
