"""Before a run on a GPU: does torch's kernel for packed samples compute causal attention there?

Stored sources of torch for ROCm align a causal mask at the top left, or take -1 for a window: the
loss would fall all the same. So output and gradients are compared once with attention that writes
out every score in fp32, in well under a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, product
from typing import Any

import torch

from train.engine.attention import packed_attention
from train.engine.replica import Keys

LENGTHS = (1, 7, 40, 1, 129)
WINDOW = 16
# Of the norm of what is compared: bf16 rounds scores and gradients to 8 bits.
TOLERANCE = 0.03


def kernel_works(
    device: torch.device, width: int, attend: Callable[..., Any] = packed_attention
) -> tuple[bool, tuple[str, ...]]:
    """Whether the kernel is right for heads of this width in bf16, and else a notice."""
    if width % 8:
        return False, (
            f"heads are {width} wide, which is no multiple of 8: each sample is attended to by "
            "itself, which is slower",
        )
    for key_heads, window, ends in product((4, 2), (None, WINDOW), (False, True)):
        heads = 4, key_heads, width
        said = disagreement(attend, device, torch.bfloat16, heads, window, ends=ends)
        if said:
            name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
            return False, (
                f"torch's attention for packed samples is not used on the {name} ({said}): "
                "each sample is attended to by itself, which is slower",
            )
    return True, ()


@dataclass(frozen=True)
class AllKeys:
    """A shared row whose keys are all here: queries are of the ends of samples only."""

    bounds: torch.Tensor
    longest: int

    def keys(self, key: torch.Tensor, value: torch.Tensor, _window: int | None) -> Keys:
        """Return keys and values of whole samples."""
        return Keys(key, value, self.bounds, self.longest)


def disagreement(
    attend: Callable[..., Any],
    device: torch.device,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    window: int | None,
    *,
    ends: bool = False,
) -> str:
    """Return how `attend` differs from attention with every score written out; empty if it agrees.

    Args:
        attend: takes what `packed_attention` does.
        heads: query heads, key heads, and elements of a head.
        ends: ask for the last third of each sample only, so that there are more keys than queries.
    """
    query_heads, key_heads, width = heads
    draw, total = torch.Generator().manual_seed(0), sum(LENGTHS)
    shapes = [(1, count, total, width) for count in (query_heads, key_heads, key_heads)]
    inputs = [torch.randn(s, generator=draw).to(device, dtype).requires_grad_() for s in shapes]
    asked = [-(-length // 3) for length in LENGTHS] if ends else list(LENGTHS)
    lasts = list(accumulate(LENGTHS))
    rows = [place for last, n in zip(lasts, asked, strict=True) for place in range(last - n, last)]
    push = torch.randn(1, len(rows), query_heads, width, generator=draw).to(device, dtype)
    of_keys, of_queries = (
        torch.tensor([0, *ends], dtype=torch.int32, device=device)
        for ends in (lasts, accumulate(asked))
    )
    shared = {"shared_row": AllKeys(of_keys, max(LENGTHS))} if ends else {}
    try:
        found, _ = attend(
            torch.nn.Identity(), inputs[0][:, :, rows], *inputs[1:], None, cu_seq_lens_q=of_queries,
            max_length_q=max(asked), sliding_window=window, **shared,
        )  # fmt: skip
        ours = (found, *torch.autograd.grad(found, inputs, push))
    except (RuntimeError, TypeError, ImportError, AttributeError, NotImplementedError) as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    exact = [one.detach().float().requires_grad_() for one in inputs]
    wanted = written_out(exact[0], exact[1], exact[2], window)[:, rows]
    theirs = (wanted, *torch.autograd.grad(wanted, exact, push.float()))
    nouns = ("output", "queries' gradient", "keys' gradient", "values' gradient")
    for noun, one, other in zip(nouns, ours, theirs, strict=True):
        off = float((one.float() - other).norm().detach() / other.norm().detach())
        if not off < TOLERANCE:
            where = " where keys are more than queries" if ends else ""
            return (
                f"its {noun} is off by {off:.0%} {'with' if window else 'without'} a window{where}"
            )
    return ""


def written_out(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None
) -> torch.Tensor:
    """Attention inside each of `LENGTHS` with one explicit mask; shapes as `packed_attention`."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    owner = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    place = torch.arange(sum(LENGTHS))
    distance = place[:, None] - place[None, :]
    seen = (owner[:, None] == owner[None, :]) & (distance >= 0)
    if window is not None:
        seen &= distance < window
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    scores = scores.masked_fill(~seen.to(query.device), float("-inf"))
    found: torch.Tensor = (scores.softmax(-1) @ value).transpose(1, 2)
    return found
