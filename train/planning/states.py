"""Bytes of weights, gradients, optimizer states and buffers of one GPU, by ZeRO stage.

DeepSpeed 0.19.8 with this project's rendering: fp32 master, fp32 accumulation, fp32 reduction.
`bench/states.py` compares with live tensors. Sources: runtime/bf16_optimizer.py (stage 1 in bf16),
runtime/zero/stage_1_and_2.py, runtime/zero/stage3.py, runtime/zero/partition_parameters.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from train.planning.buckets import SUB_GROUP, buckets_of
from train.planning.plan import Plan
from train.planning.shape import Shape

# DeepSpeed's own bucket size, in elements.
BUCKET_DEFAULT = 5e8
# Bytes of an element in NF4: 4 bits, a scale of 8 bits for 64 elements, one of 4 bytes for 256 of
# these (bitsandbytes, functional.py, quantize_4bit with compress_statistics).
PACKED = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class States:
    """Bytes on one GPU; `host` bytes that this GPU's rank keeps in host memory instead.

    `late` are gradients that exist only when a backward pass has ended, `step` what the update
    needs besides, `load` what loading needs before there are states, `saved` what a checkpoint
    copies to the host.
    """

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    late: float
    step: float
    load: float
    host: float
    saved: float


@dataclass(frozen=True)
class Counts:
    """Elements that one GPU is responsible for before ZeRO divides them."""

    trained: float
    frozen: float
    small: float


def counts_of(shape: Shape, adapter: int, tp: int, pp: int, *, whole_keys: bool = True) -> Counts:
    """Return the elements of one pipeline stage's share: trained, frozen, and in vectors.

    Args:
        whole_keys: every tensor rank has all keys and values where the ranks do not divide their
            heads, as in this project's runs.
    """
    vectors = shape.layer_parameters - shape.layer_matrices
    small = (shape.layers * vectors + shape.outer_norms * shape.norm_elements) / pp
    whole = shape.parameters / tp
    if pp > 1:
        # The first stage has the embedding, the last the head: either is the fullest.
        outer = max(shape.embedding_parameters, shape.vocab * shape.hidden)
        whole = (-(-shape.layers // pp) * shape.layer_parameters + outer) / tp
    if whole_keys and shape.kv_heads % tp:
        whole += -(-shape.layers // pp) * 2 * shape.hidden * shape.kv_width * (1 - 1 / tp)
    if not adapter:
        return Counts(whole, 0.0, small)
    return Counts(shape.adapter_parameters(adapter, tp) / pp, whole, small)


def packed_share(shape: Shape) -> float:
    """Return the share of a model's parameters that --quantize packs: its layers' matrices."""
    return shape.layers * shape.layer_matrices / shape.parameters


def states_of(
    shape: Shape,
    plan: Plan,
    size: int,
    adapter: int,
    *,
    low: bool = False,
    shards: int = 0,
    packed: bool = False,
    whole_keys: bool = True,
) -> States:
    """Return the bytes of a plan's states.

    Args:
        size: bytes of a weight's element.
        low: gradients are added up in the weights' type, as in other people's runs before ZeRO-3,
            whose buckets have DeepSpeed's own size.
        shards: the ranks among which states are divided; 0: all replicas.
        packed: the frozen base's matrices are in 4 bits, and whole on every rank.
        whole_keys: as for `counts_of`.
    """
    counts = counts_of(shape, adapter, plan.tp, plan.pp, whole_keys=whole_keys)
    shards = shards or plan.ranks
    share = packed_share(shape) if packed else 0.0
    frozen = size * (1 - share) + PACKED * share
    all_weights = size * counts.trained + frozen * counts.frozen
    if plan.zero == 3:
        kept = min(1.0, counts.small / (counts.trained + counts.frozen))
        second = 1 / plan.hpz if plan.hpz > 1 else 0.0
        weights = all_weights * (kept + (1 - kept) / shards + second)
    else:
        weights = all_weights
    master = 4.0 * counts.trained if size == 2 or plan.zero else 0.0
    states = (master + 8.0 * counts.trained) / (shards if plan.zero else 1)
    gradients, late = _gradients(counts, plan, size, shards)
    if low and plan.zero < 3:
        gradients, late = size * counts.trained / (shards if plan.zero == 2 else 1), 0.0
    host = 0.0
    if plan.offload != "none":
        # DeepSpeed pins the gradients and, before ZeRO-3, the master and its copy in few bits.
        share = counts.trained / shards
        host = 8.0 * share + pinned(4.0 * share)
        host += pinned(4.0 * share) + pinned(size * share) if plan.zero < 3 else 4.0 * share
        gradients, states = (gradients if plan.zero == 1 else 0.0), 0.0
    if plan.offload == "all":
        host += pinned(weights)
        weights = size * counts.small
    step = _step(counts, plan, size, shards)
    if low and plan.zero == 1 and plan.offload == "none":
        step = (size + 4.0) * counts.trained / shards
    here = master / shards if plan.offload == "none" else 0.0
    copied = size * counts.trained if packed else all_weights
    load = copied + here if plan.zero in (1, 2) else 0.0
    buffers = _buffers(shape, counts, plan, size)
    if packed:  # the matrix that a product has taken back to the run's type
        buffers += size * max(rows * columns for rows, columns in shape.linears)
    if low and plan.zero in (1, 2):
        buffers = 2.0 * size * min(BUCKET_DEFAULT, counts.trained)
    saved = 12.0 * counts.trained / plan.ranks
    return States(weights, gradients, states, buffers, late, step, load, host, saved)


def pinned(size: float) -> float:
    """Return what torch takes of the host for a pinned buffer: the next power of two, in bytes.

    aten/src/ATen/core/CachingHostAllocator.h, `c10::llvm::PowerOf2Ceil`.
    """
    return float(1 << max(0, ceil(size) - 1).bit_length()) if size else 0.0


def _gradients(counts: Counts, plan: Plan, size: int, shards: int) -> tuple[float, float]:
    """Return the gradients' lasting bytes, and those that exist at the end of a backward pass."""
    if plan.zero == 0:
        return 4.0 * counts.trained, 0.0
    if plan.zero == 1:
        late = size * counts.trained if size == 2 else 0.0
        return 4.0 * counts.trained, late
    return 4.0 * counts.trained / shards, 0.0


def _step(counts: Counts, plan: Plan, size: int, shards: int) -> float:
    """Bytes of the update's copies: a flat gradient in its own type and in fp32."""
    share = counts.trained / shards
    if plan.zero == 0 or plan.offload != "none":
        return 0.0
    if plan.zero == 3:
        return 6.0 * min(share, SUB_GROUP)
    return (size + 4.0) * share if plan.zero == 2 else 0.0


def _buffers(shape: Shape, counts: Counts, plan: Plan, size: int) -> float:
    """Bytes of reduction buckets, and of parameters that ZeRO-3 has gathered at the peak."""
    if plan.zero == 0 or (plan.ranks == 1 and plan.zero < 3):
        return 0.0
    sizes = buckets_of(shape)
    reduce = min(sizes.reduce, counts.trained)
    if plan.zero in (1, 2):
        return (0.0 if plan.zero == 1 and size == 2 else 4.0 * reduce * 2) + 4.0 * reduce
    layer = shape.layer_parameters / plan.tp
    outer = max(shape.embedding_parameters, shape.head_parameters) / plan.tp
    live = max(2 * layer + min(sizes.prefetch, layer), layer + outer)
    return size * live + (size + 4.0) * reduce
