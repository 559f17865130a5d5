"""Before a run on a GPU: does torch's kernel for packed samples compute causal attention there?

Stored sources of torch for ROCm align a causal mask at the top left, or take -1 for a window: the
loss would fall all the same. So output and gradients are compared once with attention that writes
out every score in fp32, in well under a second.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch

from train.engine.attention import packed_attention

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
    for key_heads in (4, 2):
        for window in (None, WINDOW):
            said = disagreement(attend, device, torch.bfloat16, (4, key_heads, width), window)
            if said:
                name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
                return False, (
                    f"torch's attention for packed samples is not used on the {name} ({said}): "
                    "each sample is attended to by itself, which is slower",
                )
    return True, ()


def disagreement(
    attend: Callable[..., Any],
    device: torch.device,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    window: int | None,
) -> str:
    """Return how `attend` differs from attention with every score written out; empty if it agrees.

    Args:
        attend: takes what `packed_attention` does.
        heads: query heads, key heads, and elements of a head.
    """
    query_heads, key_heads, width = heads
    draw, total = torch.Generator().manual_seed(0), sum(LENGTHS)
    shapes = [(1, count, total, width) for count in (query_heads, key_heads, key_heads)]
    inputs = [torch.randn(s, generator=draw).to(device, dtype).requires_grad_() for s in shapes]
    push = torch.randn(1, total, query_heads, width, generator=draw).to(device, dtype)
    bounds = torch.tensor([0, *accumulate(LENGTHS)], dtype=torch.int32, device=device)
    try:
        found, _ = attend(
            torch.nn.Identity(), *inputs, None, cu_seq_lens_q=bounds, max_length_q=max(LENGTHS),
            sliding_window=window,
        )  # fmt: skip
        ours = (found, *torch.autograd.grad(found, inputs, push))
    except (RuntimeError, TypeError, ImportError, AttributeError, NotImplementedError) as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    exact = [one.detach().float().requires_grad_() for one in inputs]
    wanted = written_out(exact[0], exact[1], exact[2], window)
    theirs = (wanted, *torch.autograd.grad(wanted, exact, push.float()))
    nouns = ("output", "queries' gradient", "keys' gradient", "values' gradient")
    for noun, one, other in zip(nouns, ours, theirs, strict=True):
        off = float((one.float() - other).norm() / other.norm())
        if not off < TOLERANCE:
            return f"its {noun} is off by {off:.0%} {'with' if window else 'without'} a window"
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
