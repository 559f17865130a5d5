"""What a run will need of each host: from the plan that it would get on the hosts as found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from train.config import RunConfig
from train.errors import PlanError
from train.launch.everywhere import Answer
from train.planning import (
    Candidate,
    Cluster,
    Request,
    Shape,
    built_in_names,
    choose,
    cluster_of,
    find_gpu,
    find_shape,
    merge_pins,
    read_ds_config,
    with_advice,
)
from train.planning.calibration import calibrated

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


def need_of(config: RunConfig, answers: Sequence[Answer], cache: Path) -> Need:
    """Plan for the hosts that answered; samples are taken to fill their blocks.

    Args:
        cache: where the user's calibrations lie.

    Raises:
        PlanError: nothing that the pins allow fits on these hosts.
        ModelError: the model's config.json cannot be understood.
    """
    name = config.model.name_or_path
    known = [answer for answer in answers if answer.facts is not None and not answer.facts["fault"]]
    if name is None or not known or not (Path(name).exists() or name in built_in_names()):
        what = "no model is named" if name is None else f"{name} is not here yet"
        return Need(_UNKNOWN, 0.0, f"{what}: disk and memory are not compared with a plan")
    shape = find_shape(name)
    request = Request(
        shape=shape,
        cluster=_cluster(known, cache),
        batch_size=config.data.batch_size,
        block_size=config.data.block_size,
        precision=config.model.precision,
        lora=config.model.lora,
        pins=merge_pins(config, read_ds_config(Path(config.ds_config))),
    )
    choice = with_advice(request, choose(request))
    if choice.chosen is None:
        raise PlanError(choice.nearest or "no plan fits: use more GPUs, or --use-lora")
    disk = disk_of(config, shape)
    return Need(disk, choice.chosen.host_memory, _words(request.cluster, choice.chosen, disk))


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


def _cluster(answers: Sequence[Answer], cache: Path) -> Cluster:
    """Return what the planner knows of the hosts: the smallest device and host count."""
    hosts = [(answer.host.name, answer.host.slots) for answer in answers]
    facts = [answer.facts or {} for answer in answers]
    memory = min(float(fact["memory"]["total"]) for fact in facts)
    devices = [device for fact in facts for device in fact["devices"]]
    if devices:
        smallest = min(devices, key=lambda device: float(device["total"]))
        gpu = calibrated(find_gpu(smallest["name"], float(smallest["total"])), cache)
    else:
        most = max(slots for _, slots in hosts)
        share = min(1.0, min(int(fact["cores"]) for fact in facts) / most)
        gpu = calibrated(find_gpu("cpu", memory / most), cache).shared(share)
    return replace(cluster_of(hosts, {}, gpu), host_memory=memory)


def _words(cluster: Cluster, chosen: Candidate, disk: float) -> str:
    plan = chosen.plan
    return (
        f"the plan for {cluster.gpus} x {cluster.gpu.name} is ZeRO {plan.zero}, recomputation "
        f"{plan.recompute}, offload {plan.offload}: {chosen.memory.total / _GB:.1f} of "
        f"{cluster.gpu.memory / _GB:.1f} GB a device, {chosen.host_memory / _GB:.1f} GB of each "
        f"host's memory, {disk / _GB:.1f} GB of disk"
    )
