"""Time of one optimizer step: compute, what communication it cannot hide, bubbles, offload.

The equations are in docs/planner.md. `Rates` holds every constant that was fitted to published
measurements (`bench/fit.py`); each is a physical quantity and the same for every
source, model and GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log2

from train.planning.activations import Setting, layer_bytes
from train.planning.lengths import Lengths, busiest_tokens
from train.planning.links import (
    Group,
    copy_group,
    data_group,
    exchange_time,
    gather_time,
    received_tokens,
    replica_group,
    tensor_group,
)
from train.planning.memory import element_size, low_precision_sums, setting_of, shard_group
from train.planning.plan import Plan
from train.planning.request import Duration, PlanRequest
from train.planning.shape import Shape
from train.planning.states import PACKED, counts_of, packed_share


@dataclass(frozen=True)
class Rates:
    """Fitted constants; shares are of what the table of GPUs says.

    sustained               of the achievable rate, what hours of work keep (clocks, stalls)
    tile_tokens, tile_width tokens, or elements of a width, at which a product reaches half its rate
    vocabulary              bytes moved for one logit, there and back
    nvlink_efficiency       of a host's inner links, what a collective reaches
    attention               of the achievable rate, in fused attention, forward
    attention_back, …_2     the same, back: where the first release of FlashAttention was still
                            about, and where it was not (335 TFLOP/s there and back on an H100, the
                            second release's paper)
    traffic                 how often a byte that single kernels would keep crosses the memory bus
                            in a forward and backward pass
    eager                   how often besides an element of a norm made of a dozen fp32 operations
    scores                  how often a byte of attention scores crosses it
    overlap                 of compute, behind which communication hides
    nic_efficiency          of a NIC's rate, what a collective reaches
    collective_latency, ring_step, ring_step_across
                            seconds of a ring of no bytes: once, from GPU to GPU, from host to host
                            (LL128 in NCCL's src/graph/tuning.cc, not fitted)
    sync_cost               seconds that compute waits for a collective, per doubling of ranks
    launch                  seconds between two kernels
    update_bytes_per_param  bytes that the update moves per parameter
    straggler_penalty       of a step, lost to stragglers per doubling of hosts
    unaligned_penalty       of a product, lost where a side is no multiple of 64 elements (128
                            bytes, NVIDIA's guide to matrix products)
    """

    sustained: float = 0.915
    tile_tokens: float = 73.0
    tile_width: float = 66.0
    vocabulary: float = 29.0
    nvlink_efficiency: float = 0.74
    attention: float = 0.66
    attention_back: float = 0.33
    attention_back_2: float = 0.5
    traffic: float = 9.2
    eager: float = 105.0
    scores: float = 11.5
    overlap: float = 0.65
    nic_efficiency: float = 0.65
    collective_latency: float = 1.4e-5
    ring_step: float = 1.9e-6
    ring_step_across: float = 4e-6
    sync_cost: float = 1.4e-4
    launch: float = 6e-6
    update_bytes_per_param: float = 24.0
    straggler_penalty: float = 0.012
    unaligned_penalty: float = 0.2


RATES = Rates()
# gloo has no streams to overlap with, and goes through the kernel's sockets.
ON_CPU = {"overlap": 0.0, "collective_latency": 2e-4, "ring_step": 1e-4,
          "ring_step_across": 2e-4, "sync_cost": 1e-3}  # fmt: skip
# Kernels of a layer in one pass; seconds that DeepSpeed's ZeRO-3 hooks take for a layer and pass.
KERNELS = 60
# Elements of a side of a product that the fastest kernels need whole.
TILE = 64
HOOKS = 4e-4
HOST_ADAM_BYTES = 1.5e11
# Where nobody trains with the first release of FlashAttention.
RECENT = ("sm_90", "sm_100", "sm_103")


def duration(request: PlanRequest, plan: Plan, lengths: Lengths, rates: Rates = RATES) -> Duration:
    """Return the seconds of one optimizer step by what they are spent on."""
    if request.cluster.gpu.is_cpu:
        rates = replace(rates, **ON_CPU)
    micros = plan.accumulation
    # Where replicas differ, the larger get the longer samples.
    share = plan.sp * plan.dp / plan.ranks
    share *= request.cluster.gpus / request.cluster.power  # the slowest gets least
    micro = busiest_tokens(lengths, request.batch_size, plan.dp) * share / micros
    pass_time = _micro(request, plan, lengths, micro, rates) + _unpack(request, plan)
    tensor = _tensor(request, plan, lengths, micro, rates)
    work = pass_time + tensor
    bubble = (plan.pp - 1) * work + _boundaries(request, plan, micro, rates) * (micros + plan.pp)
    exposed = _data(request, plan, micros, pass_time, rates)
    update, offload = _update(request, plan, rates)
    hosts = max(1, len(request.cluster.sizes))
    stragglers = 1 + rates.straggler_penalty * (hosts - 1).bit_length()
    compute = (micros * pass_time + update) * stragglers
    return Duration(compute, micros * tensor + exposed, bubble if plan.pp > 1 else 0.0, offload)


def _unpack(request: PlanRequest, plan: Plan) -> float:
    """Return the seconds in which a pass takes matrices of 4 bits back to the run's type."""
    if not request.quantize:
        return 0.0
    shape = request.shape
    moved = (PACKED + element_size(request)) * packed_share(shape) * shape.parameters
    times = 3 if plan.recompute == "full" else 2
    return times * moved / request.cluster.gpu.bandwidth


def _micro(
    request: PlanRequest, plan: Plan, lengths: Lengths, tokens: float, rates: Rates
) -> float:
    """Return the seconds of one micro-batch's forward and backward pass on one GPU."""
    shape, gpu = request.shape, request.cluster.gpu
    run = setting_of(request, plan, lengths)
    local = tokens / plan.sp
    layers = -(-shape.layers // plan.pp)
    rate = _rate(request)
    products = sum(
        _product(local, rows, columns / plan.tp, rate, rates)
        * _unaligned(rows, columns, plan, rates)
        for rows, columns in shape.linears
    )
    mean = lengths.reach
    scores = shape.attention_flops(mean) / shape.layers * local / plan.tp / rate
    scores /= rates.sustained
    elements = _moved(shape, run, rates) * local / gpu.bandwidth
    forward = products + elements / 3
    attention = scores / rates.attention
    recent = gpu.architecture in RECENT
    back = 2.5 * scores / (rates.attention_back_2 if recent else rates.attention_back)
    if run.dense:
        if shape.head_dim % 8:  # 16 bytes: without them there are no tensor cores for such products
            attention, back = attention / gpu.fp32_ratio, back / gpu.fp32_ratio
        moved = 2 * shape.heads * mean * local / plan.tp / gpu.bandwidth
        attention, back = attention + rates.scores * moved, back + 2 * rates.scores * moved
    trained = 2 if request.lora is None else 1
    backward = trained * products + elements * 2 / 3 + back
    again = {"none": 0.0, "selective": elements / 3, "full": forward + attention}[plan.recompute]
    if plan.recompute == "selective" and run.dense:
        again = attention
    # The last pipeline stage has the head besides its layers, and the others wait for it.
    head = _head(request, plan, local, rates)
    busy = layers * (forward + attention + backward + again) + head
    host = layers * 3 * (rates.launch * KERNELS + HOOKS * (plan.zero == 3))
    return busy + host if request.cluster.gpu.is_cpu else max(busy, host)


def _moved(shape: Shape, run: Setting, rates: Rates) -> float:
    """Return the bytes per token that a layer's elementwise work moves, there and back."""
    single = layer_bytes(shape, replace(run, fused=True, dense=0.0, sp=1)).none
    eager = 0.0
    if not run.fused and shape.norm != "layer":
        eager = float(run.size * shape.norms * shape.hidden / run.split)
    return rates.traffic * single + rates.eager * eager


def _product(tokens: float, rows: float, columns: float, rate: float, rates: Rates) -> float:
    """Return the seconds of one matrix product; every side costs a share of a tile."""
    waste = (
        (1 + rates.tile_tokens / tokens)
        * (1 + rates.tile_width / rows)
        * (1 + rates.tile_width / columns)
    )
    return 2 * tokens * rows * columns * waste / (rate * rates.sustained)


def _unaligned(rows: int, columns: int, plan: Plan, rates: Rates) -> float:
    """Return how many times longer a product takes whose sides are not whole tiles."""
    return 1 + rates.unaligned_penalty * bool(rows % TILE or columns / plan.tp % TILE)


def _rate(request: PlanRequest) -> float:
    """Return the FLOP per second of large products: in fp32 they do without tensor cores."""
    gpu = request.cluster.gpu
    if request.precision != "fp32" or gpu.is_cpu:
        return gpu.achievable_flops
    return gpu.achievable_flops * gpu.fp32_ratio


def _head(request: PlanRequest, plan: Plan, tokens: float, rates: Rates) -> float:
    """Return the seconds of logits and loss, there and back."""
    shape, gpu = request.shape, request.cluster.gpu
    rows = tokens * request.loss_fraction
    vocab = shape.vocab / plan.tp
    product = _product(max(rows, 1.0), shape.hidden, vocab, _rate(request), rates)
    return (
        3 if request.lora is None else 2
    ) * product + rates.vocabulary * rows * vocab / gpu.bandwidth


def _tensor(
    request: PlanRequest, plan: Plan, lengths: Lengths, tokens: float, rates: Rates
) -> float:
    """Return the seconds of tensor and sequence parallelism's collectives of one micro-batch."""
    shape, cluster = request.shape, request.cluster
    size = element_size(request) * tokens / plan.sp * shape.hidden
    layers = shape.layers / plan.pp
    found = 0.0
    if plan.tp > 1:
        # Recomputed, a layer ends at its last product here, whose sum is not formed again.
        again = 2 if request.implementation or shape.post_norms else 1
        count = 4 + (again if plan.recompute == "full" else 0)
        group = tensor_group(plan, cluster)
        once = gather_time(size, group, cluster, rates)
        found += count * layers * (2 * once + rates.sync_cost * log2(plan.tp))
    return found + layers * _exchanges(request, plan, lengths, tokens, rates)


def _exchanges(
    request: PlanRequest, plan: Plan, lengths: Lengths, tokens: float, rates: Rates
) -> float:
    """Return the seconds in which one layer's keys, values and their gradients are exchanged."""
    group = replica_group(plan, request.cluster)
    if group.size == 1:
        return 0.0
    row = tokens * group.size / plan.sp
    needed = received_tokens(request.shape, group.size, row, lengths.reach)
    size = 2 * needed * request.shape.kv_width * element_size(request)
    once = exchange_time(size, group, request.cluster, rates) + rates.sync_cost * log2(group.size)
    return (2 if plan.recompute == "none" else 3) * once


def _boundaries(request: PlanRequest, plan: Plan, tokens: float, rates: Rates) -> float:
    """Return the seconds of a micro-batch's two passages between pipeline stages."""
    if plan.pp == 1:
        return 0.0
    cluster = request.cluster
    size = element_size(request) * tokens / plan.sp * request.shape.hidden
    # Where a host holds several stages, those at its edge send to other hosts, and all wait.
    beside = min(cluster.per_host, plan.gpus // plan.pp)
    across = len(cluster.sizes) > 1
    rate = cluster.nic * rates.nic_efficiency / beside if across else cluster.gpu.link
    return 2 * (size / plan.tp / rate + rates.collective_latency + rates.ring_step_across)


def _data(request: PlanRequest, plan: Plan, micros: int, work: float, rates: Rates) -> float:
    """Return the seconds of ZeRO's communication that compute does not hide."""
    cluster, size = request.cluster, element_size(request)
    group, shards = data_group(plan, cluster), shard_group(request, plan)
    if group.size == 1:
        return 0.0
    adapter = request.lora.r if request.lora else 0
    own = request.implementation is None
    counts = counts_of(request.shape, adapter, plan.tp, plan.pp, whole_keys=own)
    layers = request.shape.layers / plan.pp

    def once(among: Group, elements: float, bytes_each: int, times: float = 1.0) -> float:
        return gather_time(elements * bytes_each, among, cluster, rates, times)

    reduced = size if low_precision_sums(request) else 4
    if plan.zero < 3:
        reduce, refresh = (
            2 * once(group, counts.trained, reduced),
            once(shards, counts.trained, size),
        )
        rounds = micros if plan.zero == 2 else 1
        # This project's pipelines reduce when all micro-batches have come back.
        alone = plan.pp > 1 and request.implementation is None
        hidden = 0.0 if alone else rates.overlap * work * 2 / 3
        return rounds * max(0.0, reduce - hidden) + (refresh if plan.zero else 0.0)
    near = copy_group(plan, cluster) if plan.hpz > 1 else shards  # where backward gathers
    gathers = sum(
        once(among, counts.trained + counts.frozen, size, layers) for among in (shards, near)
    )
    scatter = once(shards, counts.trained, reduced, layers)
    if shards != group:  # what a host's ranks have added up is added up across hosts
        across = Group(group.hosts, 1, cluster.per_host)
        scatter += 2 * once(across, counts.trained / shards.size, reduced, layers)
    first = (gathers + scatter) / (2 * layers)
    return micros * (max(0.0, gathers + scatter - rates.overlap * work) + first)


def _update(request: PlanRequest, plan: Plan, rates: Rates) -> tuple[float, float]:
    """Return the seconds of the update on the GPU, and those of offload."""
    cluster = request.cluster
    adapter = request.lora.r if request.lora else 0
    own = request.implementation is None
    counts = counts_of(request.shape, adapter, plan.tp, plan.pp, whole_keys=own)
    shards = shard_group(request, plan).size if plan.zero else 1
    share = counts.trained / shards
    if plan.offload == "none":
        return rates.update_bytes_per_param * share / cluster.gpu.bandwidth, 0.0
    ranks = max(cluster.sizes)
    moved = (4 + element_size(request)) * share / cluster.gpu.host_link
    adam = 32 * share * ranks / HOST_ADAM_BYTES
    if plan.offload == "all":
        weights = element_size(request) * (counts.trained + counts.frozen) / shards
        moved += 2 * plan.accumulation * weights / cluster.gpu.host_link
    return 0.0, moved + adam
