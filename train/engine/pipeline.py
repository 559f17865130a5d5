"""Micro-batches through the stages of a pipeline: one forward, one backward, in turn (1F1B).

Each stage runs as many forward passes ahead as there are stages after it, then one backward pass
after each forward pass, so that it holds at most as many micro-batches as there are stages from it
on. What is sent after one pass and received before the next is one exchange, so that neighbours
always have something for each other. Lengths are known to all stages, since packing is a pure
function; only hidden states and their gradients travel. One stage alone sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from train.engine.mesh import Mesh


@dataclass(frozen=True)
class Pass:
    """A micro-batch's forward pass through a stage, or its way back."""

    micro: int
    back: bool = False


def passes(stage: int, stages: int, micros: int) -> tuple[Pass, ...]:
    """Return the passes of one step on stage `stage`, in order."""
    ahead = min(stages - 1 - stage, micros)
    found = [Pass(micro) for micro in range(ahead)]
    for micro in range(ahead, micros):
        found += [Pass(micro), Pass(micro - ahead, back=True)]
    return (*found, *(Pass(micro, back=True) for micro in range(micros - ahead, micros)))


def forward_only(micros: int) -> tuple[Pass, ...]:
    """Return the passes of an evaluation."""
    return tuple(Pass(micro) for micro in range(micros))


Act = Callable[[Pass, torch.Tensor | None], torch.Tensor | None]


@dataclass(frozen=True)
class Neighbours:
    """A stage's neighbours, and the shapes of what they send."""

    mesh: Mesh
    dtype: torch.dtype
    device: torch.device
    shapes: Sequence[tuple[int, ...]]

    def follow(self, order: Sequence[Pass], act: Act) -> None:
        """Carry out passes: `act` gets what a pass receives and returns what it sends."""
        come = self._swap(None, None, order[0]) if order else None
        for number, now in enumerate(order):
            gone = act(now, come)
            following = order[number + 1] if number + 1 < len(order) else None
            come = self._swap(now, gone, following)

    def _swap(
        self, sent: Pass | None, gone: torch.Tensor | None, following: Pass | None
    ) -> torch.Tensor | None:
        """Send what a pass has made, and return what the next one needs."""
        operations, come, group = [], None, self.mesh.pipe_group
        to = self._peer(sent, receives=False)
        if to is not None and gone is not None:
            operations.append(dist.P2POp(dist.isend, gone.contiguous(), to, group))
        source = self._peer(following, receives=True)
        if source is not None and following is not None:
            shape = self.shapes[following.micro]
            come = torch.empty(shape, dtype=self.dtype, device=self.device)
            operations.append(dist.P2POp(dist.irecv, come, source, group))
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()
        return come

    def _peer(self, one: Pass | None, *, receives: bool) -> int | None:
        """Return the rank that a pass receives from, or sends to; None where there is none."""
        if one is None:
            return None
        # Forward passes receive from the stage before and send to the one after; others reversed.
        step = 1 if one.back == receives else -1
        pipe = self.mesh.pipe + step
        return self.mesh.at(pipe=pipe) if 0 <= pipe < self.mesh.pp else None


class _Return(torch.autograd.Function):
    """A scalar whose backward pass begins with a gradient that came from the stage after."""

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gradient)
        return output.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None


def returning(output: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return a scalar to go backward from, as from a loss, with this gradient of `output`."""
    found: torch.Tensor = _Return.apply(output, gradient)
    return found


def sum_over_ends(mesh: Mesh, gradients: Sequence[torch.Tensor]) -> None:
    """Add up, in place, what the first and the last stage have found for the same parameters.

    Both add the same two numbers, so that what they hold stays equal to the last bit.
    """
    peer = mesh.at(pipe=0 if mesh.is_last else mesh.pp - 1)
    for own in gradients:
        other = torch.empty_like(own)
        work = dist.batch_isend_irecv([
            dist.P2POp(dist.isend, own.contiguous(), peer, mesh.pipe_group),
            dist.P2POp(dist.irecv, other, peer, mesh.pipe_group),
        ])  # fmt: skip
        for one in work:
            one.wait()
        own.add_(other)
