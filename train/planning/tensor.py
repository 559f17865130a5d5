"""Which numbers of tensor ranks a model and its hosts allow."""

from __future__ import annotations

from train.errors import PlanError
from train.planning.request import PlanRequest
from train.planning.shape import Shape

# Model types whose parts were compared with the whole (tests/engine/test_tensor.py).
FAMILIES = (
    "gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3", "starcoder2",
)  # fmt: skip


def resembles(shape: Shape) -> bool:
    """Whether a shape may be of one of FAMILIES, where only the shape is known."""
    wide_norm = shape.qk_norm > 2 * shape.head_dim
    return not (shape.parallel or shape.positions or shape.bias_head or wide_norm)


def degrees(request: PlanRequest) -> tuple[int, ...]:
    """Return the numbers of tensor ranks that can be: inside a host, as many heads on each.

    A fused product of queries and keys must divide by its key heads, too.
    """
    shape = request.shape
    if not (request.shardable and resembles(shape)) or request.quantize:
        return (1,)
    heads = shape.kv_heads if shape.fused_qkv else shape.heads
    return tuple(
        count
        for count in range(1, min(request.cluster.sizes) + 1)
        if heads % count == 0
        and shape.heads % count == 0
        and all(size % count == 0 for size in request.cluster.sizes)
    )


def require_tensor(request: PlanRequest, tp: int) -> None:
    """Refuse a number of tensor ranks that cannot be.

    Raises:
        PlanError: it says which there may be.
    """
    shape, hosts = request.shape, request.cluster.sizes
    if shape.heads % tp and request.implementation is not None:
        raise PlanError(f"--pin tp={tp} does not divide the model's {shape.heads} heads")
    if tp == 1 or request.implementation is not None:
        return
    possible = degrees(request)
    if tp not in possible:
        raise PlanError(
            f"--pin tp={tp} {_why(request, tp)}: leave it out, or pin one of "
            f"{', '.join(map(str, possible))} ({shape.name} on hosts of {min(hosts)} GPUs)"
        )
    if (request.pins.hpz or 1) > 1:
        raise PlanError(
            f"the pins tp={tp}, hpz={request.pins.hpz} contradict each other: DeepSpeed's second "
            "copy of the weights knows no tensor ranks; leave one out"
        )


def _why(request: PlanRequest, tp: int) -> str:
    shape, hosts = request.shape, request.cluster.sizes
    if request.quantize:
        return f"cannot divide weights in {request.quantize}"
    if not (request.shardable and resembles(shape)):
        known = ", ".join(FAMILIES)
        return f"divides matrices, which only runs of {known} can"
    if shape.heads % tp:
        return f"does not divide the model's {shape.heads} heads"
    if shape.fused_qkv and shape.kv_heads % tp:
        return f"does not divide the model's {shape.kv_heads} key heads, fused with its queries"
    return f"does not divide hosts of {', '.join(map(str, sorted(set(hosts))))} GPUs"
