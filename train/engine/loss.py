"""The loss: a sum of token cross-entropies, whose gradient is formed in the logits' own memory.

The sum over tokens is divided once, by the loss tokens of the whole optimizer step, so that it
does not depend on how the samples were packed. fp32 logits exist for `LOSS_ROWS` tokens at a time.
"""

from __future__ import annotations

from typing import Any

import torch

from train.planning.activations import LOSS_ROWS


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, targets: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        gradient = logits.detach()
        for first in range(0, len(targets), LOSS_ROWS):
            rows, wanted = (
                gradient[first : first + LOSS_ROWS],
                targets[first : first + LOSS_ROWS, None],
            )
            logs = torch.log_softmax(rows.float(), dim=-1)
            total -= logs.gather(1, wanted).sum(dtype=torch.float64)
            slope = logs.exp_().scatter_add_(1, wanted, torch.full_like(logs[:, :1], -1.0))
            rows.copy_(slope.mul_(scale))
        ctx.save_for_backward(gradient, torch.where(total.isfinite(), 1.0, float("nan")))
        ctx.mark_non_differentiable(total)
        return (total * scale).float(), total

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor, _: Any) -> tuple[torch.Tensor, None, None]:
        gradient, guard = ctx.saved_tensors
        return gradient.mul_((upstream * guard).to(gradient.dtype)), None, None


def summed_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scaled loss to go backward from, and the plain sum.

    The logits are overwritten by their gradient. A sum that is not finite makes the whole gradient
    not a number, so that a guard on the gradient's norm also sees a bad loss.

    Args:
        logits: (K, vocabulary), any floating type; targets: int64 (K,); scale: a factor.

    Returns:
        fp32 scalar `scale * sum`, to be differentiated, and the float64 scalar `sum` in nats.
    """
    loss, total = _SummedCrossEntropy.apply(logits, targets, scale)
    return loss, total
