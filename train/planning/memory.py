"""The peak of one GPU's memory over an optimizer step, and of its host's."""

from __future__ import annotations

from dataclasses import dataclass, replace

from train.planning.activations import Setting, layer_bytes, outer_bytes
from train.planning.lengths import Lengths
from train.planning.links import Group, data_group, received_tokens, replica_group
from train.planning.plan import Plan
from train.planning.request import Memory, PlanRequest
from train.planning.states import States, states_of
from train.text import GIB

# Driver context and kernels of a process; buffers of its communicators; blocks that the allocator
# holds but cannot use, as a share of what comes and goes. Plain data parallelism has one group of
# ranks and micro-batches that come and go whole; layouts with tensor or pipeline parallelism have
# several groups and several micro-batches alive, and their published peaks and failures fit
# about 1 GiB a group and a fifth (bench/published.py).
CONTEXT = 0.6 * GIB
COMMUNICATORS, COMMUNICATORS_MIXED = 0.7 * GIB, 6.5 * GIB
FRAGMENTED, FRAGMENTED_MIXED = 0.04, 0.2
# The pinned buffer through which a checkpoint leaves a GPU.
STAGED = 2**28


@dataclass(frozen=True)
class Footprint:
    """A GPU's peak by what it holds, and the bytes of one whole host."""

    gpu: Memory
    host: float


def footprint(request: PlanRequest, plan: Plan, lengths: Lengths) -> Footprint:
    """Return the peak memory of a plan."""
    size = element_size(request)
    adapter = request.lora.r if request.lora else 0
    low = low_precision_sums(request)
    shards = shard_group(request, plan).size
    own = request.implementation is None
    states = states_of(request.shape, plan, size, adapter, low=low, shards=shards, whole_keys=own,
                       packed=bool(request.quantize))  # fmt: skip
    layers, outer = _activations(request, plan, lengths)
    layers, outer, buffers = _settle(states, layers, outer, pipeline=plan.pp > 1)
    mixed = plan.tp * plan.pp > 1
    reserve = 0.0
    if not request.cluster.gpu.is_cpu:
        reserve = CONTEXT + (FRAGMENTED_MIXED if mixed else FRAGMENTED) * (layers + outer)
        if plan.gpus > 1:
            reserve += COMMUNICATORS_MIXED if mixed else COMMUNICATORS
    gpu = Memory(
        states.weights, states.gradients, states.optimizer, layers, outer, buffers, reserve
    )
    return Footprint(gpu, _host(request, states, gpu.total))


def shard_group(request: PlanRequest, plan: Plan) -> Group:
    """Return the ranks among which ZeRO divides states: all replicas, or those of one host."""
    group = data_group(plan, request.cluster)
    inside = request.pins.shards == "host"
    return replace(group, size=group.local) if inside else group


def element_size(request: PlanRequest) -> int:
    """Bytes of a weight's element."""
    return 4 if request.precision == "fp32" else 2


def setting_of(request: PlanRequest, plan: Plan, lengths: Lengths) -> Setting:
    """Return how a micro-batch of this plan is run."""
    return Setting(
        size=element_size(request),
        adapter=request.lora.r if request.lora else 0,
        fused=_fused(request),
        dense=lengths.mean_square / lengths.mean if _dense(request) else 0.0,
        longest=lengths.longest,
        dropout=bool(request.lora and request.lora.dropout),
        repeats=_repeats(request),
        tp=plan.tp,
        split=plan.tp if request.pins.sequence == "tensor" else 1,
        sp=plan.sp,
        whole_logits=request.implementation is not None,
    )


def low_precision_sums(request: PlanRequest) -> bool:
    """Whether gradients are added up in the weights' type: not in this project's runs."""
    other = request.implementation
    return other is not None and other.gradients != "fp32"


def _fused(request: PlanRequest) -> bool:
    """Whether norms, activations and loss are single kernels: most published runs' are."""
    other = request.implementation
    return request.fused if other is None else other.kernels == "fused"


def _dense(request: PlanRequest) -> bool:
    other = request.implementation
    return request.shape.softcap if other is None else other.attention == "dense"


def _repeats(request: PlanRequest) -> bool:
    """Whether attention repeats grouped keys: where scores are capped, and on GPUs but in bf16."""
    other_kernel = request.precision != "bf16" and not request.cluster.gpu.is_cpu
    ours = request.implementation is None
    return ours and (request.repeats_keys or request.shape.softcap or other_kernel)


def _activations(request: PlanRequest, plan: Plan, lengths: Lengths) -> tuple[float, float]:
    """Return the bytes of layers and of the outer part on the stage that holds the most."""
    run, shape = setting_of(request, plan, lengths), request.shape
    layer = layer_bytes(shape, run)
    lasting = layer.kept(plan.recompute)
    tokens = plan.micro_tokens
    positions = (2 * run.size * shape.head_dim + 40) * tokens / run.sp
    keys = _fetched_keys(request, plan, lengths)
    layers = -(-shape.layers // plan.pp)
    kept = layers * (lasting * tokens + keys * (plan.recompute == "none")) + positions
    outer = outer_bytes(shape, run, request.loss_fraction, tokens)
    # Sent, received and put together, they exist three times for a moment.
    back = layer.backward(plan.recompute, tokens) + 3 * keys
    last = (kept, outer) if outer >= back else (kept + back, 0.0)
    if plan.pp == 1:
        return last
    first = min(plan.pp, plan.accumulation) * kept + back
    return last if sum(last) > first else (first, 0.0)


def _fetched_keys(request: PlanRequest, plan: Plan, lengths: Lengths) -> float:
    """Return the bytes of a layer's keys and values that a rank holds of the others' tokens."""
    size = replica_group(plan, request.cluster).size
    if size == 1:
        return 0.0
    row = plan.micro_tokens * size / plan.sp
    needed = received_tokens(request.shape, size, row, 2.0 * lengths.longest)
    return 2 * needed * request.shape.kv_width * element_size(request)


def _settle(
    states: States, layers: float, outer: float, *, pipeline: bool
) -> tuple[float, float, float]:
    """Return layers, outer and buffers at whichever moment of the step needs most.

    Before the backward pass all activations exist; at its end the late gradients do (with a
    pipeline both, because other micro-batches are on their way); the update comes when both are
    gone; loading needs a second copy of the weights for a moment.
    """
    steady = states.gradients + states.optimizer
    running = layers + outer + states.buffers
    if pipeline:
        running, states = (
            running + states.late,
            replace(states, buffers=states.buffers + states.late),
        )
    other = max(states.late + states.buffers, states.step, states.load - steady)
    return (layers, outer, states.buffers) if running >= other else (0.0, 0.0, other)


def _host(request: PlanRequest, states: States, device: float) -> float:
    """Bytes of one host: what its ranks offload or copy to save, and the processes.

    A checkpoint is copied to the host before it is written, whatever lies there already. On CPU the
    devices' own bytes count.
    """
    ranks = max(request.cluster.sizes)
    own = device if request.cluster.gpu.is_cpu else 2.5 * GIB + STAGED
    return ranks * (states.host + states.saved + own)
