"""What a run will need of each host, from the plan that it would get there; what a host lacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from train.config import RunConfig
from train.data.model_folder import UnseenModelError, model_shape
from train.errors import PlanError
from train.hosts.hostfile import Host
from train.hosts.probe import HostReport
from train.planning import (
    Candidate,
    Cluster,
    PlanRequest,
    Shape,
    choose,
    merge_pins,
    read_ds_config,
    with_advice,
)
from train.planning.cluster import Device, cluster_of_devices, require_bf16

_UNKNOWN = 10e9  # bytes of disk, where it is not known what will be trained
_STATE = 12  # bytes of a checkpoint for each trained parameter: the master and two moments in fp32
_GB = 1e9


@dataclass(frozen=True)
class Need:
    """What a run will need, in bytes: disk in its folder, memory of each host (0: not known).

    `words` says from which plan.
    """

    disk: float
    memory: float
    words: str = ""


def need_of(
    config: RunConfig, reports: Sequence[tuple[Host, HostReport]], calibrations: Path
) -> Need:
    """Plan for the hosts that answered; samples are taken to fill their blocks.

    Args:
        calibrations: where the rates lie that this user has measured.

    Raises:
        PlanError: nothing that the pins allow fits on these hosts, or a GPU lacks the precision.
        ModelError: the model's config.json cannot be understood.
    """
    name = config.model.name_or_path
    known = [(host, report) for host, report in reports if not report.error]
    if name is None or not known:
        return _unknown("no model is named" if name is None else "no host is fit for a run")
    try:
        shape, devices = model_shape(name)[0], tuple(_devices(known))
    except UnseenModelError:
        return _unknown(f"{name} is not here yet")
    require_bf16(devices, config.model.precision)
    request = PlanRequest(
        shape=shape,
        cluster=cluster_of_devices(devices, calibrations),
        batch_size=config.data.batch_size,
        block_size=config.data.block_size,
        precision=config.model.precision,
        lora=config.model.lora,
        quantize=config.model.quantize,
        pins=merge_pins(config, read_ds_config(Path(config.ds_config), config)),
    )
    choice = with_advice(request, choose(request))
    if choice.chosen is None:
        raise PlanError(choice.nearest or "no plan fits: use more GPUs, or --use-lora")
    disk = disk_of(config, shape)
    return Need(disk, choice.chosen.host_memory, _words(request.cluster, choice.chosen, disk))


def _unknown(why: str) -> Need:
    return Need(_UNKNOWN, 0.0, f"{why}: disk and memory are not compared with a plan")


def shortages(host: Host, report: HostReport, need: Need) -> Iterator[str]:
    """Yield, a sentence each, what a host has too little of for a run."""
    if report.disk < need.disk:
        yield (
            f"{report.disk / _GB:.1f} GB of disk are free, but {need.disk / _GB:.1f} are needed: "
            "remove old runs, or name a larger disk with --run-dir"
        )
    if report.available < need.memory:
        yield (
            f"{report.available / _GB:.1f} GB of memory are free, but {need.memory / _GB:.1f} GB "
            "are needed: end what uses it, or plan with --pin offload=none"
        )


def disk_of(config: RunConfig, shape: Shape) -> float:
    """Return the bytes that a run writes: the checkpoints that are kept, one more, the model."""
    lora, output = config.model.lora, config.output
    trained = shape.parameters if lora is None else shape.adapter_parameters(lora.r)
    saves = output.keep + 1
    if not output.save_step:
        saves = 1
    elif config.max_steps is not None:
        saves = min(saves, -(-config.max_steps // output.save_step))
    return trained * (_STATE * saves + (4 if config.model.precision == "fp32" else 2))


def _devices(reports: Sequence[tuple[Host, HostReport]]) -> Iterator[Device]:
    """Yield a device for every slot: a visible GPU, or a CPU rank's share of its host."""
    for node, (host, report) in enumerate(reports):
        if report.usage:
            for device in report.usage[: host.slots]:
                yield Device(
                    node, device.name, int(device.total), report.memory,
                    architecture=device.architecture,
                )  # fmt: skip
            continue
        share = min(1.0, report.cores / host.slots)
        for _ in range(host.slots):
            yield Device(node, "cpu", report.memory // host.slots, report.memory, share)


def _words(cluster: Cluster, chosen: Candidate, disk: float) -> str:
    plan = chosen.plan
    return (
        f"the plan for {cluster.gpus} x {cluster.gpu.name} is ZeRO {plan.zero}, recomputation "
        f"{plan.recompute}, offload {plan.offload}: {chosen.memory.total / _GB:.1f} of "
        f"{cluster.gpu.memory / _GB:.1f} GB a device, {chosen.host_memory / _GB:.1f} GB of each "
        f"host's memory, {disk / _GB:.1f} GB of disk"
    )
