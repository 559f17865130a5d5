"""One optimizer step over DeepSpeed: any number of packed micro-batches, one exact mean.

The loss is the sum of token cross-entropies over the loss tokens of the whole step. DeepSpeed
averages gradients over the ranks, so each micro-batch's sum is scaled by ranks / loss tokens, and
the accumulation boundary is set by hand because the number of micro-batches changes every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from train.data.batch import MicroBatch, continued
from train.engine.gang import Gang
from train.engine.inputs import Inputs
from train.engine.loss import margins_of
from train.engine.mesh import Mesh
from train.engine.model import LoadedModel
from train.engine.pace import Stopwatch
from train.engine.pipeline import Neighbours, Pass, forward_only, passes, sum_over_ends
from train.engine.scale import LossScale
from train.engine.tensor import likeliest
from train.engine.work import Work
from train.errors import NonFiniteError
from train.planning.balance import Pace


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step found: loss in nats per token, the gradient norm before clipping.

    `stop`: whether any rank asked to stop; `skipped`: how often the gradient overflowed fp16 before
    the step was applied. Equal on all ranks.
    """

    loss: float
    grad_norm: float
    stop: bool = False
    skipped: int = 0


@dataclass(frozen=True)
class Engine:
    """DeepSpeed's engine behind four verbs: step, evaluate, gather the weights, measure memory.

    `inputs` lays a micro-batch out as the model takes it: packed in one row, or padded.
    `stopwatch` times the rank's products now and then; None where nothing depends on them.
    """

    gang: Gang
    mesh: Mesh
    model: LoadedModel
    deepspeed: Any
    max_grad_norm: float
    inputs: Callable[[MicroBatch, torch.device], Inputs]
    before: int = 0
    scale: LossScale = field(default_factory=LossScale)
    stopwatch: Stopwatch | None = None

    def step(
        self,
        step: int,
        micros: Sequence[MicroBatch],
        loss_tokens: int,
        lr: float,
        *,
        stop: bool = False,
    ) -> StepResult:
        """Take one optimizer step; every rank brings the same number of micro-batches.

        Where the gradient overflows fp16, nothing is applied, and the same is done again with a
        smaller loss scale.

        Args:
            step: from 0; names the dropout's draw.
            micros: this replica's; an empty one takes part with zero weight.
            loss_tokens: of the whole step, over all ranks; pairs, where these are trained.
            lr: learning rate of this step.
            stop: whether this rank asks all to stop after this step.

        Raises:
            NonFiniteError: on every rank, before anything was applied.
        """
        self.deepspeed.train()
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr
        skipped = 0
        while True:
            found, sums = self._attempt(step, micros, loss_tokens, stop=stop)
            if math.isfinite(found.loss) and math.isfinite(found.grad_norm):
                self.scale.count()
                if self.stopwatch is not None:
                    self.stopwatch.note()
                return replace(found, skipped=skipped)
            if not (math.isfinite(found.loss) and self.scale.halved()):
                self._refuse(step, micros, sums, found)
            self._forget_sums()
            skipped += 1

    def _attempt(
        self, step: int, micros: Sequence[MicroBatch], loss_tokens: int, *, stop: bool
    ) -> tuple[StepResult, torch.Tensor]:
        """Return what was found, and each micro-batch's loss; applied if all of it is finite."""
        work = self._work(step, micros, self.scale.value * self.mesh.ranks / loss_tokens)
        sums = work.sums
        self._neighbours(micros).follow(passes(self.mesh.pipe, self.mesh.pp, len(micros)), work.act)
        if self.mesh.pp > 1:
            self._reduce()
        own = sums.sum() if self.mesh.speaks else sums.new_zeros(())
        totals = self.gang.sum(torch.stack([own, sums.new_tensor(float(stop))]))
        norm = self._update()
        total, stops = totals.tolist()
        return StepResult(total / loss_tokens, norm, stops > 0), sums

    def evaluate(self, batches: Iterable[Sequence[MicroBatch]]) -> tuple[float, int]:
        """Return the summed loss in nats and its terms (tokens, or pairs) over all ranks."""
        self.deepspeed.eval()
        sums = torch.zeros((2,), dtype=torch.float64, device=self.gang.device)
        with torch.no_grad():
            for micros in batches:
                work = self._work(0, micros, 1.0)
                self._neighbours(micros).follow(forward_only(len(micros)), work.act)
                if self.mesh.speaks:
                    terms = float(sum(micro.terms for micro in micros))
                    sums += torch.stack([work.sums.sum(), sums.new_tensor(terms)])
        # A forward without a backward leaves parameters of ZeRO-3 on their way.
        self.deepspeed.empty_partition_cache()
        self.gang.sum(sums)
        return float(sums[0]), int(sums[1])

    def next_token(self, tokens: NDArray[np.int64]) -> int:
        """Return the likeliest token after `tokens` (T,) on rank 0; every rank must ask."""
        self.deepspeed.eval()
        micros = [continued(tokens)]
        work = self._work(0, micros, 1.0)
        found = torch.zeros((), dtype=torch.int64, device=self.gang.device)

        def act(now: Pass, come: torch.Tensor | None) -> torch.Tensor | None:
            if not self.mesh.is_last:
                return work.act(now, come)
            token = likeliest(work.logits(now, come)[-1], self.mesh)
            if self.mesh.speaks and self.mesh.data == 0:
                found.copy_(token)
            return None

        with torch.no_grad():
            self._neighbours(micros).follow(forward_only(1), act)
        self.deepspeed.empty_partition_cache()
        return int(self.gang.sum(found))

    def margins(self, micro: MicroBatch) -> torch.Tensor:
        """Return how much likelier each pair's chosen text is, float64 (pairs,); all ranks ask.

        It is 0 on ranks that do not speak for their replica.
        """
        self.deepspeed.eval()
        assert micro.reference is not None
        work = self._work(0, [micro], 1.0)
        device = self.gang.device
        found = torch.zeros(len(micro.reference), dtype=torch.float64, device=device)

        def act(now: Pass, come: torch.Tensor | None) -> torch.Tensor | None:
            if not self.mesh.is_last:
                return work.act(now, come)
            laid, logits = self._lay(micro), work.logits(now, come)
            if self.mesh.speaks:
                found.copy_(margins_of(logits, laid.targets, laid.texts, len(found)))
            return None

        with torch.no_grad():
            self._neighbours([micro]).follow(forward_only(1), act)
        self.deepspeed.empty_partition_cache()
        return found

    def agree(self, *, wish: bool) -> bool:
        """Whether any rank wishes so; every rank must ask."""
        wishes = torch.tensor(float(wish), dtype=torch.float64, device=self.gang.device)
        return bool(self.gang.sum(wishes) > 0)

    def paces(self) -> list[Pace]:
        """Return every rank's pace since this was asked last, on every rank, which all must ask."""
        return self.gang.gather(self.stopwatch.take() if self.stopwatch else Pace())

    def peak_bytes(self) -> int:
        """Return the most device memory this rank has allocated so far.

        On CPU: how far the process has grown since before the model was loaded.
        """
        return peak_bytes(self.gang.device) - self.before

    def reserved_bytes(self) -> int:
        """Return the most device memory that torch has taken from the driver; 0 on CPU."""
        device = self.gang.device
        return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0

    def _lay(self, micro: MicroBatch) -> Inputs:
        return self.inputs(micro, self.gang.device)

    def _work(self, step: int, micros: Sequence[MicroBatch], scale: float) -> Work:
        device = self.gang.device
        sums = torch.zeros((len(micros),), dtype=torch.float64, device=device)
        watch = self.stopwatch if torch.is_grad_enabled() else None
        return Work(
            self.deepspeed, self.model, self.mesh, step, micros, self._lay, scale, sums, watch
        )

    def _neighbours(self, micros: Sequence[MicroBatch]) -> Neighbours:
        """Return the way to the stages beside this one, which send hidden states."""
        width, dtype = self.model.hidden
        shapes = [(1, len(micro.tokens), width) for micro in micros]
        return Neighbours(self.mesh, dtype, self.gang.device, shapes)

    def _reduce(self) -> None:
        """Reduce the gradients of a stage once all of them are there, those of both ends first."""
        shared = [p for p in self.model.shared if p.requires_grad]
        sum_over_ends(self.mesh, [accumulated(parameter) for parameter in shared])
        self.deepspeed.set_gradient_accumulation_boundary(True)
        self.deepspeed.allreduce_gradients()

    def _update(self) -> float:
        """Clip and apply the update unless a gradient is not finite; return the gradient norm.

        ZeRO's optimizers skip an update whose global norm is not finite, on every rank alike;
        without ZeRO nothing does, so the norm is taken here, on gradients equal on every rank.
        """
        if self.deepspeed.zero_optimization():
            if self.scale.dynamic:
                # The losses were scaled before DeepSpeed saw them; it has only to divide.
                self.deepspeed.optimizer.loss_scale = self.scale.value
            self.deepspeed.step()
            if self.scale.dynamic:
                self.deepspeed.optimizer.loss_scale = 1.0
            return float(self.deepspeed.get_global_grad_norm())
        parameters = [p for p in self.model.module.parameters() if p.grad is not None]
        # In fp64, as ZeRO does: summed in fp32 the norm of 10 million elements is off by 4e-4.
        counted = [p for p in parameters if self.mesh.counts(p)]
        squares = [torch.linalg.vector_norm(p.grad, dtype=torch.float64) ** 2 for p in counted]
        zero = torch.zeros((), dtype=torch.float64, device=self.gang.device)
        norm = float(self.mesh.sum_over_model(sum(squares, zero)).sqrt())
        if math.isfinite(norm):
            limit = self.max_grad_norm or math.inf
            total = torch.tensor(norm, dtype=torch.float64, device=self.gang.device)
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, total)
            self.deepspeed.step()
        return norm

    def _forget_sums(self) -> None:
        """Drop the gradients of an update that was skipped: ZeRO-1 and -2 keep offloaded ones."""
        sums = self.deepspeed.optimizer.averaged_gradients
        for group in sums:
            sums[group] = None

    def _refuse(
        self, step: int, micros: Sequence[MicroBatch], sums: torch.Tensor, found: StepResult
    ) -> None:
        bad = [
            m for m, total in zip(micros, sums.tolist(), strict=True) if not math.isfinite(total)
        ]
        mine = sorted({int(i) for micro in bad for i in micro.samples if i >= 0})
        named = sorted({i for rank in self.gang.gather(mine) for i in rank})
        where = f"in samples {named}" if named else "in the gradient, with every loss finite"
        raise NonFiniteError(
            f"step {step + 1} is not finite {where} (loss {found.loss:g}, gradient norm "
            f"{found.grad_norm:g}); the update was not applied: lower --lr, or look at the samples"
        )


def accumulated(parameter: torch.nn.Parameter) -> torch.Tensor:
    """Return the gradient that was added up so far, wherever DeepSpeed's optimizers keep it."""
    for name in ("_hp_grad", "grad_accum"):
        if (found := getattr(parameter, name, None)) is not None:
            return torch.as_tensor(found)
    assert parameter.grad is not None
    return parameter.grad


def peak_bytes(device: torch.device) -> int:
    """Return the most memory allocated on the device so far; of the host's, for a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
