"""The plan of a run: chosen on rank 0 for the devices that were found, and explained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from train.console import Console
from train.data.model_folder import read_model_config
from train.data.store import Dataset
from train.engine.gang import Device, Gang
from train.engine.kernels import usable
from train.errors import ModelError, PlanError
from train.hops import Source
from train.launch import exhaustion
from train.planning import (
    Candidate,
    Choice,
    Cluster,
    Request,
    choose,
    cluster_of,
    find_gpu,
    log_lines,
    pin_cost,
    render,
    scaling_warning,
    unlisted,
    with_advice,
)
from train.planning.calibration import calibrated
from train.planning.hardware import GIB
from train.planning.plan import Plan


@dataclass(frozen=True)
class Planned:
    """The candidate chosen, on which cluster, as DeepSpeed's dictionary."""

    chosen: Candidate
    cluster: Cluster
    zero: Mapping[str, object]

    @property
    def plan(self) -> Plan:
        """The layout of a step."""
        return self.chosen.plan


def plan(
    source: Source, data: Dataset, gang: Gang, console: Console, cache: Path | None = None
) -> Planned:
    """Choose a plan on rank 0, tell everyone, and print it with what the user should know of it.

    Args:
        cache: the user's cache folder, where `anyrank plan --calibrate` keeps what it measured.

    Raises:
        PlanError: nothing that the pins allow fits.
        ModelError: the tokeniser has more entries than the model embeds.
    """
    check_vocabulary(source, data)
    devices = gang.devices()
    console.say(layout([device.node for device in devices]))
    request = _request(source, data, cluster(devices, cache))
    names = {device.name for device in devices}
    choice, lines = gang.from_main(lambda: _choose(request, source.config.output.run_dir, names))
    for line in lines:
        console.say(line)
    if choice.chosen is None:
        raise PlanError(choice.nearest or "no plan fits: use more GPUs, or --use-lora")
    config = source.config
    zero = render(choice.chosen.plan, source.shape, config.model, config.optimizer, source.ds)
    return Planned(choice.chosen, request.cluster, zero)


def layout(nodes: Sequence[int]) -> str:
    """Say how many ranks were found on how many hosts, from each rank's host."""
    sizes = list(Counter(nodes).values())
    hosts = f"{len(sizes)} host{'s' if len(sizes) > 1 else ''}"
    if len(set(sizes)) == 1:
        return f"Found {hosts} x {sizes[0]} = {len(nodes)} ranks"
    return f"Found {hosts} with {', '.join(map(str, sizes))} = {len(nodes)} ranks"


def check_vocabulary(source: Source, data: Dataset) -> None:
    """Refuse data with tokens that the model does not embed; entries that are not used may be more.

    Raises:
        ModelError: there are such; both numbers are named.
    """
    if data.tokenizer.vocab_size <= source.shape.vocab:
        return
    largest = max(int(split.tokens.max(initial=0)) for split in (data.train, data.eval))
    if largest >= source.shape.vocab:
        raise ModelError(
            f"the tokeniser has {data.tokenizer.vocab_size} entries but the model embeds only "
            f"{source.shape.vocab}: give the model's own with --tokenizer"
        )


def _choose(
    request: Request, run_dir: str | None, devices: Collection[str]
) -> tuple[Choice, tuple[str, ...]]:
    limit = exhaustion.limit(Path(run_dir), devices) if run_dir else None
    learned = ""
    if limit is not None:
        memory = min(limit, request.cluster.gpu.memory)
        gpu = replace(request.cluster.gpu, memory=memory)
        request = replace(request, cluster=replace(request.cluster, gpu=gpu))
        learned = f"A plan of this run ran out of memory: planning below {memory / GIB:.2f} GiB"
    choice = with_advice(request, choose(request))
    remarks = (
        learned,
        unlisted(request.cluster.gpu),
        pin_cost(request, choice),
        scaling_warning(request, choice),
    )
    return choice, (*log_lines(choice), *(remark for remark in remarks if remark))


def cluster(devices: Sequence[Device], cache: Path | None = None) -> Cluster:
    """Return what the planner knows of the devices that were found, or has measured before."""
    hosts = [(str(node), len(list(group))) for node, group in groupby(d.node for d in devices)]
    smallest = min(devices, key=lambda device: device.memory)
    gpu, share = find_gpu(smallest.name, smallest.memory), min(one.share for one in devices)
    if cache is not None:
        gpu = calibrated(gpu, cache / "calibration")
    found = cluster_of(hosts, {}, gpu.shared(share))
    return replace(found, host_memory=float(min(device.host_memory for device in devices)))


def _request(source: Source, data: Dataset, cluster: Cluster) -> Request:
    config = source.config
    model_type = str(read_model_config(source.model).get("model_type"))
    lengths, counts = np.unique(data.train.lengths, return_counts=True)
    return Request(
        shape=source.shape,
        cluster=cluster,
        batch_size=config.data.batch_size,
        block_size=config.data.block_size,
        precision=config.model.precision,
        lora=config.model.lora,
        lengths=dict(zip(lengths.tolist(), counts.tolist(), strict=True)),
        loss_fraction=float(data.train.loss_tokens.sum()) / float(data.train.lengths.sum()),
        fused=usable(model_type, "cpu" if cluster.gpu.is_cpu else "cuda"),
        pins=source.pins,
    )
