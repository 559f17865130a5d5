"""What tensor ranks send one another: sums of activations, of gradients, and of the loss's parts.

Every matrix of a layer is divided among them. A layer has two sums on the way forward, behind the
products of attention and MLP that are divided by their input, and two on the way back, before those
that are divided by their output; recomputed in full it has one more, since what comes behind the
layer's last product is not formed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from train.engine.loss import Loss, formed
from train.engine.mesh import Mesh
from train.planning.activations import LOSS_ROWS


def summed(values: torch.Tensor, group: Any) -> torch.Tensor:
    """Return the sum over a group's ranks, equal to the last bit on all of them.

    A product that selective recomputation keeps must not change, so the sum is not formed in place.
    """
    operations = torch.ops._c10d_functional  # noqa: SLF001
    begun = operations.all_reduce(values.contiguous(), "sum", group.group_name)
    found: torch.Tensor = operations.wait_tensor(begun)
    return found


class _Sum(torch.autograd.Function):
    """Forward the sum of what the ranks have, backward what comes: behind a divided product."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, group: Any) -> torch.Tensor:
        return summed(values, group)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


class _Spread(torch.autograd.Function):
    """Forward what comes, backward the sum of the ranks' gradients: before divided products."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return summed(gradient, ctx.group), None


def spread_input(module: torch.nn.Module, group: Any) -> None:
    """Have the hidden states that enter a module come with the sum of all ranks' gradients."""

    def enter(_: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if args:
            return (_Spread.apply(args[0], group), *args[1:]), options
        return args, {**options, "hidden_states": _Spread.apply(options["hidden_states"], group)}

    module.register_forward_pre_hook(enter, with_kwargs=True)


def sum_output(module: torch.nn.Module, group: Any) -> None:
    """Have a module return the sum of what all ranks' modules make."""
    module.register_forward_hook(lambda _module, _args, output: _Sum.apply(output, group))


def sum_gradient(parameter: torch.nn.Parameter, group: Any) -> None:
    """Have a whole parameter, of which each rank uses a part, get the gradients of all ranks.

    They are added in fp32. Equal parameters stay equal, because all ranks get the same sum.
    """
    parameter.register_hook(lambda own: summed(own.float(), group).to(own.dtype))


def add_once(linear: Any, rank: int) -> None:
    """Have one rank alone add the bias, where products are summed; the others' gradient is zero."""

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        bias = linear.bias if rank == 0 else linear.bias * 0
        return torch.nn.functional.linear(hidden, linear.weight, bias)

    linear.forward = forward


def look_up(embedding: Any, first: int, last: int, group: Any) -> None:
    """Have an embedding that holds the rows `first` to `last` find every row."""
    plain, rows = embedding.forward, last - first
    filler = embedding.padding_idx
    own = filler is not None and first <= filler < last
    embedding.padding_idx = filler - first if own else None

    def forward(ids: torch.Tensor) -> torch.Tensor:
        places = ids - first
        elsewhere = (places < 0) | (places >= rows)
        found = plain(places.masked_fill(elsewhere, 0)).masked_fill(elsewhere[..., None], 0)
        whole: torch.Tensor = _Sum.apply(found, group)
        return whole

    embedding.forward = forward


@dataclass(frozen=True)
class Vocabulary:
    """The tokens from `first` on, whose logits this rank has; `group` has all of them."""

    first: int
    group: Any


def divided_loss(mesh: Mesh, vocabulary: int) -> Loss:
    """Return `summed_cross_entropy` for logits of this rank's tokens alone, (K, own tokens).

    Every rank returns the same loss; targets are numbers in the whole `vocabulary`.
    """
    part = Vocabulary(share(vocabulary, mesh)[0], mesh.tensor_group)
    return partial(_cross_entropy, part)


def _cross_entropy(
    part: Vocabulary, logits: torch.Tensor, targets: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    gradient = logits.detach()
    for first in range(0, len(targets), LOSS_ROWS):
        rows = gradient[first : first + LOSS_ROWS]
        places = targets[first : first + LOSS_ROWS, None] - part.first
        elsewhere = (places < 0) | (places >= rows.shape[1])
        places = places.masked_fill(elsewhere, 0)
        values = rows.float()
        top = values.amax(-1, keepdim=True)
        dist.all_reduce(top, dist.ReduceOp.MAX, group=part.group)
        values -= top
        picked = values.gather(1, places).masked_fill(elsewhere, 0)
        values.exp_()
        both = torch.cat([values.sum(-1, keepdim=True), picked], dim=1)
        dist.all_reduce(both, group=part.group)
        total -= (both[:, 1] - both[:, 0].log()).sum(dtype=torch.float64)
        slope = values.div_(both[:, :1])
        slope.scatter_add_(1, places, elsewhere.to(slope.dtype) - 1.0)
        rows.copy_(slope.mul_(scale))
    return formed(logits, total, scale)


def likeliest(logits: torch.Tensor, mesh: Mesh) -> torch.Tensor:
    """Return the token with the largest logit, int64; every tensor rank must ask.

    Args:
        logits: of the tokens that this rank has, (own tokens,).
    """
    token = logits.argmax()
    if mesh.tp == 1:
        return token
    own = torch.stack(
        [logits[token].double(), token.double(), token.new_tensor(len(logits)).double()]
    )
    parts = [torch.empty_like(own) for _ in range(mesh.tp)]
    dist.all_gather(parts, own, group=mesh.tensor_group)
    tops, tokens, counts = torch.stack(parts).unbind(1)
    best = int(tops.argmax())
    return (counts[:best].sum() + tokens[best]).long()


def share(count: int, mesh: Mesh) -> tuple[int, int]:
    """Return this tensor rank's part of `count` things in a row: first, and after the last."""
    return count * mesh.tensor // mesh.tp, count * (mesh.tensor + 1) // mesh.tp
