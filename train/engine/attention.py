"""Attention over packed samples, with no mask in memory: each sample attends to itself only.

One function is registered with transformers under `NAME` and chosen once, when the model is made.
It receives the segment boundaries as `cu_seq_lens_q` (int32, on the device) and `max_length_q`
(host), the names that transformers' own variable-length kernels use, and on the host as `segments`.
It handles grouped-query heads and sliding windows. On CUDA it calls torch's variable-length
attention; elsewhere, and for soft-capped scores, it walks over the samples, so that blocks between
samples cost nothing. Where the ranks of a replica share the row, a segment is a stretch of a
sample, and its keys are those of the sample up to the stretch's end: causal from the bottom right.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from functools import cache, partial
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from train.engine.replica import Keys, SharedRow

NAME = "anyrank_packed"


def register(*, kernel: bool = True) -> str:
    """Make the packed attention known to transformers; return the name to ask for.

    Without `kernel` torch's is not used, where it was found to be wrong or missing.
    """
    attend = packed_attention if kernel else partial(packed_attention, kernel=False)
    AttentionInterface.register(NAME, attend)
    return NAME


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    segments: tuple[int, ...] = (),
    shared_row: SharedRow | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    kernel: bool = True,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each segment of one packed row.

    Args:
        query: (1, query heads, T, head dimension); key and value: (1, key heads, T, …).
        cu_seq_lens_q: segment boundaries, (segments + 1,), first 0, last T.
        max_length_q: length of the longest segment, tokens.
        segments: the boundaries on the host; without them some devices are waited for.
        shared_row: where the row is shared, what fetches the keys that other ranks hold.
        sliding_window: a token sees itself and this many minus one before it; None: all.

    Returns:
        (1, T, query heads, head dimension), and None for the weights.
    """
    longest = shared_row.longest if shared_row else max_length_q
    window = sliding_window if sliding_window and sliding_window < longest else None
    keys = Keys(key, value, cu_seq_lens_q, max_length_q, segments)
    if shared_row:
        keys = shared_row.keys(key, value, window)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if kernel and softcap is None and _fits_kernel(query):
        return _varlen(query, keys, cu_seq_lens_q, max_length_q, scale, window), None
    parts = [
        _segment(*rows, scale=scale, window=window, softcap=softcap, masks=keys.masks)
        for rows in _split(query, keys, segments or cu_seq_lens_q.tolist())
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _fits_kernel(query: torch.Tensor) -> bool:
    """Whether torch's variable-length kernel is for such queries."""
    width = query.shape[-1]
    return query.is_cuda and query.dtype == torch.bfloat16 and width <= 256 and width % 8 == 0


def _split(
    query: torch.Tensor, keys: Keys, bounds: Sequence[int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    seen = keys.segments or keys.bounds.tolist()
    for (first, last), (begin, end) in zip(pairwise(bounds), pairwise(seen), strict=True):
        yield query[:, :, first:last], keys.key[:, :, begin:end], keys.value[:, :, begin:end]


def _segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    masks: dict[tuple[int, int], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Attention of one segment; shapes as in `packed_attention`, the last key the last query's."""
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.is_cuda:
        # torch's one kernel on GPUs that takes groups here would keep every score.
        key, value, grouped = *_repeated(query, key, value), False
    length, seen = query.shape[2], key.shape[2]
    if softcap is None and length == seen and (window is None or length <= window):
        return scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=grouped
        )
    if softcap is None and masks is not None and not query.is_cuda:
        if (length, seen) not in masks:
            hidden = ~_visible(length, seen, window, query.device)
            masks[length, seen] = query.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        mask = masks[length, seen]  # or torch would make and keep one for every layer
    else:
        mask = _visible(length, seen, window, query.device)
    if softcap is not None:
        return _capped(query, key, value, scale, mask, softcap)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped
    )


def _repeated(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys and values once for every query head."""
    groups = query.shape[1] // key.shape[1]
    return key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)


def _visible(length: int, seen: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Which keys each query sees, bool (length, seen)."""
    steps = torch.arange(seen, device=device)
    distance = steps[seen - length :, None] - steps[None, :]
    return (distance >= 0) & (distance < (window or seen))


def _capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    visible: torch.Tensor,
    softcap: float,
) -> torch.Tensor:
    """Scores squashed to ±softcap before the softmax (Gemma 2)."""
    key, value = _repeated(query, key, value)
    scores = torch.tanh(query @ key.transpose(2, 3) * (scale / softcap)) * softcap
    scores = scores.masked_fill(~visible, float("-inf"))
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ value


def _varlen(
    query: torch.Tensor,
    keys: Keys,
    bounds: torch.Tensor,
    longest: int,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {}
    key, value = keys.key, keys.value
    if query.shape[1] != key.shape[1]:
        if knows_groups():
            options["enable_gqa"] = True
        else:
            key, value = _repeated(query, key, value)
    rows = [tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value)]
    edge = (window - 1 if window else -1, 0)
    call: Any = varlen_attn
    out: torch.Tensor = call(
        *rows, bounds, keys.bounds, longest, keys.longest, scale=scale, window_size=edge, **options
    )
    return out.unsqueeze(0)


@cache
def knows_groups() -> bool:
    """Whether torch's variable-length attention takes grouped heads (not in 2.11)."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters
