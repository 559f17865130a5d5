"""What would help where nothing fits; what a pin costs; where more GPUs stop helping."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from train.config import LoraConfig
from train.planning.hardware import GPUS
from train.planning.pins import KERNELS
from train.planning.request import Choice, Request
from train.planning.search import choose

GIB = 2**30
PIN_COST = 0.05
WORTHWHILE = 0.7


def with_advice(request: Request, choice: Choice) -> Choice:
    """Return the choice with `nearest` told, if nothing fits."""
    if choice.chosen is not None:
        return choice
    return replace(choice, nearest=nearest(request, choice))


def nearest(request: Request, choice: Choice) -> str:
    """Return one sentence: by how much nothing fits, and what would."""
    least = min(choice.candidates, key=lambda candidate: candidate.memory.total)
    have, need = request.cluster.gpu.memory, least.memory.total
    if least.reason == "host memory":
        have, need = request.cluster.host_memory, least.host_memory
    where = "each host" if least.reason == "host memory" else f"each {request.cluster.gpu.name}"
    lacking = (
        f"nothing fits: the smallest plan needs {need / GIB:.1f} GiB on {where}, "
        f"which has {have / GIB:.1f}"
    )
    found = [text for text, changed in _changes(request) if _fits(changed)]
    return f"{lacking}; {' or '.join(found[:4]) or 'use a smaller model'}"


def _fits(request: Request) -> bool:
    return choose(request).chosen is not None


def _changes(request: Request) -> Iterator[tuple[str, Request]]:
    """Yield what could be changed, the smallest of each kind first."""
    free = {key: value for key, value in request.pins.items() if key in KERNELS}
    if dict(request.pins) != free:
        yield "drop the pins", replace(request, pins=free)
    more = _more_gpus(request)
    if more is not None:
        yield f"use {more.cluster.gpus} GPUs", more
    bigger = _bigger_gpu(request)
    if bigger is not None:
        yield f"use {bigger.cluster.gpu.name}", bigger
    if request.lora is None:
        yield "train an adapter with --use-lora", replace(request, lora=LoraConfig(16, 32, 0.0))
    shorter = _shorter(request)
    if shorter is not None:
        yield f"use --block-size {shorter.block_size}", shorter


def _more_gpus(request: Request) -> Request | None:
    cluster = request.cluster
    for factor in (2, 4, 8, 16, 32, 64):
        more = replace(request, cluster=replace(cluster, sizes=cluster.sizes * factor))
        if "dp" not in request.pins and _fits(more):
            return more
    return None


def _bigger_gpu(request: Request) -> Request | None:
    cluster = request.cluster
    larger = [gpu for gpu in GPUS if gpu.memory > 1.05 * cluster.gpu.memory]
    for gpu in sorted(larger, key=lambda gpu: (gpu.memory, gpu.name)):
        changed = replace(request, cluster=replace(cluster, gpu=gpu))
        if not cluster.gpu.is_cpu and _fits(changed):
            return changed
    return None


def _shorter(request: Request) -> Request | None:
    block = request.block_size // 2
    while block >= 128:
        changed = replace(request, block_size=block)
        if _fits(changed):
            return changed
        block //= 2
    return None


def pin_cost(request: Request, choice: Choice) -> str | None:
    """Return what the pins cost, where that is more than 5 % of a step."""
    free = {key: value for key, value in request.pins.items() if key in KERNELS}
    if choice.chosen is None or dict(request.pins) == free:
        return None
    best = choose(replace(request, pins=free)).chosen
    if best is None:
        return None
    cost = choice.chosen.time.total / best.time.total - 1
    if cost <= PIN_COST:
        return None
    pins = ", ".join(f"{k}={v}" for k, v in sorted(request.pins.items()) if k not in free)
    return (
        f"the pins {pins} cost {100 * cost:.0f} % of a step's time: unpinned, "
        f"zero={best.plan.zero} recompute={best.plan.recompute} "
        f"micro_tokens={best.plan.micro_tokens} would be chosen"
    )


def scaling_warning(request: Request, choice: Choice) -> str | None:
    """Return a warning where twice the GPUs would give much less than twice the speed."""
    if choice.chosen is None or {"dp", "tp", "pp", "sp"} & request.pins.keys():
        return None
    cluster = request.cluster
    if request.batch_size < cluster.gpus:
        return (
            f"the batch of {request.batch_size} samples leaves "
            f"{cluster.gpus - request.batch_size} of {cluster.gpus} GPUs without work: use fewer"
        )
    double = choose(replace(request, cluster=replace(cluster, sizes=cluster.sizes * 2))).chosen
    if double is None:
        return None
    gain = choice.chosen.time.total / double.time.total
    if gain >= 2 * WORTHWHILE:
        return None
    return (
        f"more GPUs hardly help with this batch: {2 * cluster.gpus} would be {gain:.1f} times "
        f"as fast as {cluster.gpus}"
    )
