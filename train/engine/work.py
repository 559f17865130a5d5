"""The micro-batches of one step on one rank: each goes forward through its stage, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from train.data.batch import MicroBatch
from train.engine.inputs import Inputs
from train.engine.loss import pair_loss
from train.engine.mesh import Mesh
from train.engine.model import LoadedModel
from train.engine.pace import Stopwatch
from train.engine.pipeline import Pass, returning


@dataclass(frozen=True)
class Held:
    """A micro-batch between its two passes: what came from the stage before, what goes backward."""

    micro: Inputs
    come: torch.Tensor | None
    output: torch.Tensor


@dataclass(frozen=True)
class Work:
    """What one step does with each of its micro-batches, as `lay` lays it out for the model.

    `sums` gets their losses in nats, (M,) in fp64; it stays 0 but on the last stage. `stopwatch`
    times the forward passes, where it is given.
    """

    deepspeed: Any
    model: LoadedModel
    mesh: Mesh
    step: int
    micros: Sequence[MicroBatch]
    lay: Callable[[MicroBatch], Inputs]
    scale: float
    sums: torch.Tensor
    stopwatch: Stopwatch | None = None
    held: dict[int, Held] = field(default_factory=dict)

    def act(self, now: Pass, come: torch.Tensor | None) -> torch.Tensor | None:
        """Carry out a pass, and return what the neighbour gets: hidden states, or their gradient.

        Args:
            come: what the other stage has sent; None where there is none.
        """
        return self._back(now.micro, come) if now.back else self._forward(now.micro, come)

    def logits(self, now: Pass, come: torch.Tensor | None) -> torch.Tensor:
        """Return the last stage's logits (K, vocabulary) of a pass that has no way back."""
        return self._logits(self.lay(self.micros[now.micro]), come)

    def _forward(self, number: int, come: torch.Tensor | None) -> torch.Tensor | None:
        micro, training = self.lay(self.micros[number]), torch.is_grad_enabled()
        self.model.dropout.set_tokens(self.step, micro.samples, micro.positions)
        if come is not None and training:
            come.requires_grad_()
        if training:
            boundary = self.mesh.pp == 1 and number == len(self.micros) - 1
            self.deepspeed.set_gradient_accumulation_boundary(boundary)
        with self.stopwatch.watching(self.step) if self.stopwatch else nullcontext():
            if self.mesh.is_last:
                output, self.sums[number] = self._loss(micro, come)
            else:
                output = self._output(micro, come)
        if training:
            self.held[number] = Held(micro, come, output)
        return None if self.mesh.is_last else output.detach()

    def _back(self, number: int, gradient: torch.Tensor | None) -> torch.Tensor | None:
        held = self.held.pop(number)
        # Recomputation asks for them again, and other micro-batches came forward since.
        self.model.dropout.set_tokens(self.step, held.micro.samples, held.micro.positions)
        loss = held.output if gradient is None else returning(held.output, gradient)
        self.deepspeed.backward(loss, scale_wrt_gas=False)
        return None if held.come is None else held.come.grad

    def _loss(self, micro: Inputs, come: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        if micro.reference is not None:
            logits = self._logits(micro, come)
            return pair_loss(logits, micro.targets, micro.texts, micro.reference, self.scale)
        if self.model.head is None:
            return self.model.loss(self._logits(micro, come), micro.targets, self.scale)
        self.model.head.set_targets(micro.targets, self.scale)
        loss, total = self._output(micro, come)
        return loss, total

    def _logits(self, micro: Inputs, come: torch.Tensor | None) -> torch.Tensor:
        """Return the logits of the tokens that carry loss, (K, vocabulary)."""
        logits: torch.Tensor = self._output(micro, come)
        flat = logits.reshape(-1, logits.shape[-1])
        return flat if self.model.supports_logits_to_keep else flat[micro.where]

    def _output(self, micro: Inputs, come: torch.Tensor | None) -> Any:
        """Return what the head makes of the tokens that carry loss, or of all tokens.

        Before the last stage: hidden states.
        """
        options: dict[str, Any] = {"use_cache": False}
        if self.model.supports_logits_to_keep and self.mesh.is_last:
            options["logits_to_keep"] = micro.where
        if self.mesh.pp > 1:
            return self.deepspeed(come, **micro.arguments, **options)
        return self.deepspeed(**micro.arguments, **options).logits
