"""Sizes of DeepSpeed's buffers, from the model, in elements: one source for plan and ds_config.

DeepSpeed's own defaults (5e8, 1e9) are larger than many models: they cost gigabytes, and they keep
every parameter of a model under a billion elements gathered for good.
"""

from __future__ import annotations

from dataclasses import dataclass

from train.planning.shape import Shape

SMALLEST = 2**20
LARGEST_REDUCE = 10**8
LARGEST_PREFETCH = 2 * 10**8
SUB_GROUP = 2 * 10**8


@dataclass(frozen=True)
class Buckets:
    """Elements: gradients reduced together, parameters fetched ahead, kept, alive, reused."""

    reduce: int
    prefetch: int
    persistence: int
    live: int
    reuse: int
    sub_group: int


def buckets_of(shape: Shape) -> Buckets:
    """Return the buffer sizes for a model.

    A reduction is as large as four square matrices, which fills any link. One layer is fetched
    ahead. Norms and biases stay on every GPU. A parameter that is needed again within two layers
    is kept, so that recomputing a layer and then going back through it gathers it once.
    """
    layer = shape.layer_parameters
    outer = max(shape.embedding_parameters, shape.head_parameters)
    return Buckets(
        reduce=min(max(4 * shape.hidden**2, SMALLEST), LARGEST_REDUCE),
        prefetch=min(layer, LARGEST_PREFETCH),
        persistence=10 * shape.hidden,
        live=3 * layer + outer,
        reuse=2 * layer,
        sub_group=SUB_GROUP,
    )
