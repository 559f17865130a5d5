"""The loss: a sum of token cross-entropies, whose gradient is formed in the logits' own memory.

The sum over tokens is divided once, by the loss tokens of the whole optimizer step, so that it
does not depend on how the samples were packed. fp32 logits exist for `LOSS_ROWS` tokens at a time.

Of pairs of answers (direct preference optimization, Rafailov et al., arXiv 2305.18290, equation 7)
the loss is -log sigmoid(beta (m - r)): m is how much likelier the model finds the chosen text than
the rejected one, in nats, and r what the model at the start found. Its sum is divided once, too, by
the pairs of the whole step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from train.data.pairs import BETA
from train.planning.activations import LOSS_ROWS

# Of logits (K, vocabulary), targets (K,) and a factor: the scaled loss, and the plain sum.
Loss = Callable[[torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]]


class _Formed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, total: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.save_for_backward(logits.detach(), torch.where(total.isfinite(), 1.0, float("nan")))
        return (total * scale).float()

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        gradient, guard = ctx.saved_tensors
        return gradient.mul_((upstream * guard).to(gradient.dtype)), None, None


def formed(
    logits: torch.Tensor, total: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a loss whose gradient stands in the logits' memory already, and its plain sum.

    A sum that is not finite makes the whole gradient not a number, so that a guard on the
    gradient's norm also sees a bad loss.

    Args:
        logits: what the loss was made of, overwritten by the gradient of `scale * total`.
        total: float64 scalar; scale: a factor.
    """
    loss = _Formed.apply(logits, total, scale)
    return loss, total


def _form(
    logits: torch.Tensor, targets: torch.Tensor, factors: torch.Tensor | float
) -> torch.Tensor:
    """Overwrite logits by the gradient of their cross-entropies, each times its factor (K,).

    Returns the sum of the cross-entropies, without factors, as float64 scalar.
    """
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    gradient = logits.detach()
    for first in range(0, len(targets), LOSS_ROWS):
        part = slice(first, first + LOSS_ROWS)
        rows, wanted = gradient[part], targets[part, None]
        logs = torch.log_softmax(rows.float(), dim=-1)
        total -= logs.gather(1, wanted).sum(dtype=torch.float64)
        slope = logs.exp_().scatter_add_(1, wanted, torch.full_like(logs[:, :1], -1.0))
        own = factors if isinstance(factors, float) else factors[part, None]
        rows.copy_(slope.mul_(own))
    return total


def summed_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scaled loss to go backward from, and the plain sum.

    The logits are overwritten by their gradient.

    Args:
        logits: (K, vocabulary), any floating type; targets: int64 (K,); scale: a factor.

    Returns:
        fp32 scalar `scale * sum`, to be differentiated, and the float64 scalar `sum` in nats.
    """
    return formed(logits, _form(logits, targets, float(scale)), scale)


def pair_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    texts: torch.Tensor,
    reference: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scaled loss to go backward from, and the plain sum over the pairs.

    The logits are overwritten by their gradient.

    Args:
        logits: (K, vocabulary), any floating type; targets: int64 (K,).
        texts: int64 (K,), which text each belongs to: 2p is the chosen one of pair p, 2p + 1 the
            rejected.
        reference: float64 (P,), the margins of the model at the start, in nats.
        scale: a factor.

    Returns:
        fp32 scalar `scale * sum`, to be differentiated, and the float64 scalar `sum`.
    """
    margins = margins_of(logits, targets, texts, len(reference)) - reference
    total = -torch.nn.functional.logsigmoid(BETA * margins).sum()
    pull = BETA * torch.sigmoid(-BETA * margins)  # of the chosen up, of the rejected down
    pulls = torch.stack([pull, -pull], dim=1).reshape(-1)
    _form(logits, targets, (pulls[texts] * scale).float())
    return formed(logits, total, scale)


def margins_of(
    logits: torch.Tensor, targets: torch.Tensor, texts: torch.Tensor, pairs: int
) -> torch.Tensor:
    """Return how much likelier each pair's chosen text is than its rejected one, float64 (P,)."""
    sums = torch.zeros(2 * pairs, dtype=torch.float64, device=logits.device)
    for first in range(0, len(targets), LOSS_ROWS):
        part = slice(first, first + LOSS_ROWS)
        logs = torch.log_softmax(logits[part].detach().float(), dim=-1)
        sums.index_add_(0, texts[part], logs.gather(1, targets[part, None])[:, 0].double())
    return sums[0::2] - sums[1::2]
