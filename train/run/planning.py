"""The plan of a run: chosen on rank 0 for the devices that were found, and explained."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from train.data.mix import Dataset, lengths_taken
from train.data.model_folder import read_model_config
from train.data.tokenizers import load_tokenizer
from train.engine.attention import knows_groups
from train.engine.blank import divisible, packable, shardable
from train.engine.gang import Gang
from train.engine.kernels import liger_supported
from train.errors import ModelError, PlanError
from train.launch import oom
from train.output.console import Console
from train.paths import calibration_folder
from train.planning import (
    Candidate,
    Choice,
    Cluster,
    PlanRequest,
    choose,
    log_lines,
    pin_cost,
    render,
    scaling_warning,
    unknown_gpu,
    with_advice,
)
from train.planning.cluster import Device, cluster_of_devices, links_of, require_bf16
from train.planning.explain import describe_speeds
from train.planning.pins import hpz_left_out
from train.planning.plan import Plan
from train.planning.shares import Share, describe_shares, shares_of
from train.run.inputs import RunInputs
from train.text import GIB

OVERLAP = "overlap_comm"


@dataclass(frozen=True)
class PlannedRun:
    """The candidate chosen, on which cluster, as DeepSpeed's dictionary; `made` since the epoch.

    `shares`: of each replica, where GPUs differ.
    """

    chosen: Candidate
    cluster: Cluster
    zero: Mapping[str, object]
    shares: tuple[Share, ...] = ()
    made: float = field(default_factory=time.time)

    @property
    def plan(self) -> Plan:
        """The layout of a step."""
        return self.chosen.plan


def choose_plan(
    inputs: RunInputs,
    data: Dataset,
    gang: Gang,
    console: Console,
    cache: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> PlannedRun:
    """Choose a plan on rank 0, tell everyone, and print it with what the user should know of it.

    Args:
        cache: the user's cache folder, where `anyrank plan --calibrate` keeps what it measured.
        env: this process's environment, which tells what the hostfile says of links.

    Raises:
        PlanError: nothing that the pins allow fits, or a GPU lacks the precision.
        ModelError: the tokenizer has more entries than the model embeds.
    """
    if told := check_vocabulary(inputs, data):
        console.say(told)
    devices = gang.devices()
    require_bf16(devices, inputs.config.model.precision)
    console.say(describe_layout([device.node for device in devices]))
    calibrations = None if cache is None else calibration_folder(cache)
    links = links_of(env or {})
    if links:
        words = " ".join(f"{key}={value}" for key, value in links.items())
        console.say(f"The plan takes the links that the hostfile states: {words}")
    request = _request(inputs, data, cluster_of_devices(devices, calibrations, links))
    if left_out := hpz_left_out(request.pins, inputs.config, inputs.ds, request.cluster.gpus):
        console.say(left_out)
        request = replace(request, pins=replace(request.pins, hpz=None))
    names = {device.name for device in devices}
    for line in (*describe_others(devices), *describe_speeds(devices, request.cluster.speeds)):
        console.say(line)
    choice, shares, lines = gang.from_main(lambda: _choose(inputs, request, names))
    for line in lines:
        console.say(line)
    if choice.chosen is None:
        raise PlanError(choice.nearest or "no plan fits: use more GPUs, or --use-lora")
    if choice.chosen.plan.pp > 1 and inputs.ds.extra.get("zero_optimization", {}).get(OVERLAP):
        console.say(
            f"{inputs.ds.path}: {OVERLAP} is left out: the stages of a pipeline reduce gradients "
            "once, when all micro-batches have come back"
        )
    config = inputs.config
    zero = render(choice.chosen.plan, inputs.shape, config.model, config.optimizer, inputs.ds)
    return PlannedRun(choice.chosen, request.cluster, zero, shares)


def describe_layout(nodes: Sequence[int]) -> str:
    """Say how many ranks were found on how many hosts, from each rank's host."""
    sizes = list(Counter(nodes).values())
    hosts = f"{len(sizes)} host{'s' if len(sizes) > 1 else ''}"
    if len(set(sizes)) == 1:
        return f"Found {hosts} x {sizes[0]} = {len(nodes)} ranks"
    return f"Found {hosts} with {', '.join(map(str, sizes))} = {len(nodes)} ranks"


def describe_others(devices: Sequence[Device]) -> Iterator[str]:
    """Say where other processes hold memory of a GPU, so that plans are made for the rest."""
    for rank, device in enumerate(devices):
        if device.busy:
            yield (
                f"rank {rank}'s {device.name} has {device.busy / GIB:.1f} GiB in use by other "
                f"processes: planning for the {device.memory / GIB:.1f} GiB that are free"
            )


def check_vocabulary(inputs: RunInputs, data: Dataset) -> str:
    """Refuse data with tokens that the model does not embed; entries that are not used may be more.

    Returns:
        A sentence about such entries; empty where there are none.

    Raises:
        ModelError: the data uses one; it is named, with both numbers.
    """
    entries, embedded = data.tokenizer.vocab_size, inputs.shape.vocab
    if entries <= embedded:
        return ""
    told = f"the tokenizer has {entries} entries but the model embeds only {embedded}"
    largest = max(data.train.largest_id, data.validation.largest_id)
    if largest < embedded:
        return f"{told}: no sample uses the others"
    name = load_tokenizer(inputs.config.model, data.date).spelling([largest])
    raise ModelError(
        f"{told}, and samples use '{name}' (id {largest}): no run adds rows to an embedding, so "
        "give the model's own with --tokenizer, or where a chat template writes that token another "
        "with --chat-template"
    )


def _choose(
    inputs: RunInputs, request: PlanRequest, devices: Collection[str]
) -> tuple[Choice, tuple[Share, ...], tuple[str, ...]]:
    config = inputs.config
    run_dir = config.output.run_dir
    if request.cluster.gpus > 1:
        packs = packable(inputs.model, config.model)
        whole = config.model.quantize is not None  # what is packed in 4 bits is loaded whole
        cuts = packs and not whole and divisible(inputs.model, config.model)
        shared = config.data.objective == "sft"  # of pairs none is tried, and pins are refused
        parts = packs and shared and not whole and shardable(inputs.model, config.model)
        request = replace(request, packable=packs and shared, divisible=cuts, shardable=parts)
    limit = oom.limit(Path(run_dir), devices) if run_dir else None
    learned = ""
    if limit is not None:
        memory = min(limit, request.cluster.gpu.memory)
        gpu, part = request.cluster.gpu, memory / request.cluster.gpu.memory
        each = tuple(replace(one, memory=one.memory * part) for one in request.cluster.each)
        cluster = replace(request.cluster, gpu=replace(gpu, memory=memory), each=each)
        request = replace(request, cluster=cluster)
        learned = f"A plan of this run ran out of memory: planning below {memory / GIB:.2f} GiB"
    choice = with_advice(request, choose(request))
    notices = (
        learned,
        unknown_gpu(request.cluster.gpu),
        pin_cost(request, choice),
        scaling_warning(request, choice),
    )
    shares = shares_of(request, choice.chosen.plan) if choice.chosen else ()
    told = describe_shares(request, choice.chosen.plan, shares) if choice.chosen else ()
    return choice, shares, (*log_lines(choice), *told, *(notice for notice in notices if notice))


def _request(inputs: RunInputs, data: Dataset, cluster: Cluster) -> PlanRequest:
    config = inputs.config
    model_type = str(read_model_config(inputs.model).get("model_type"))
    lengths, share = lengths_taken(data.train)
    return PlanRequest(
        shape=inputs.shape,
        cluster=cluster,
        batch_size=config.data.batch_size,
        block_size=config.data.block_size,
        precision=config.model.precision,
        lora=config.model.lora,
        quantize=config.model.quantize,
        lengths=lengths,
        loss_fraction=share,
        fused=liger_supported(model_type, "cpu" if cluster.gpu.is_cpu else "cuda"),
        pins=inputs.pins,
        repeats_keys=not cluster.gpu.is_cpu and not knows_groups(),
    )
