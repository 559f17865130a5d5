"""The floating-point work of a step, as model FLOP utilisation counts it."""

from __future__ import annotations

from collections.abc import Iterable

from train.planning.shape import Shape


def step_flops(shape: Shape, lengths: Iterable[int], adapter_rank: int | None = None) -> float:
    """Return the FLOP of one optimizer step over samples of these lengths, in tokens.

    6 per token and parameter, without the input embedding; with an adapter 4 per frozen and 6 per
    trained one; causal attention counted exactly, forward once and backward twice. Recomputation
    is not counted.
    """
    frozen = (
        shape.layers * shape.layer_parameters
        + shape.outer_norms * shape.norm_elements
        + shape.vocab * shape.hidden
    )
    matrices = 6.0 * frozen
    if adapter_rank is not None:
        matrices = 4.0 * frozen + 6.0 * shape.adapter_parameters(adapter_rank)
    return sum(length * (matrices + 3 * shape.attention_flops(length)) for length in lengths)


def sample_cost(shape: Shape, length: float) -> float:
    """Return the relative time of one sample, in FLOP of its forward pass."""
    return length * (shape.matmul_flops() + shape.attention_flops(length))
