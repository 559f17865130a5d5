"""What the training loop needs of others, as protocols: the loop imports no engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from train.data.batch import MicroBatch
from train.planning.balance import Pace


class StepOutcome(Protocol):
    """What one optimizer step found; equal on all ranks."""

    @property
    def loss(self) -> float:
        """Mean over the step's loss tokens, in nats."""
        ...

    @property
    def grad_norm(self) -> float:
        """Global norm before clipping."""
        ...

    @property
    def stop(self) -> bool:
        """Whether any rank asked to stop."""
        ...

    @property
    def skipped(self) -> int:
        """How often the gradient overflowed fp16 before the step was applied."""
        ...


class Trainer(Protocol):
    """What takes optimizer steps."""

    def step(
        self, step: int, micros: Sequence[MicroBatch], loss_tokens: int, lr: float, *, stop: bool
    ) -> StepOutcome:
        """Take optimizer step `step`, counted from 0; `stop`: this rank asks all to stop after it.

        Raises:
            NonFiniteError: on every rank, before anything was applied.
        """
        ...

    def evaluate(self, batches: Iterable[Sequence[MicroBatch]]) -> tuple[float, int]:
        """Return the summed loss in nats and the number of loss tokens, over all ranks."""
        ...

    def agree(self, *, wish: bool) -> bool:
        """Whether any rank wishes so; every rank must ask."""
        ...

    def paces(self) -> Sequence[Pace]:
        """Return how fast every rank computed since this was asked last; every rank must ask."""
        ...

    def peak_bytes(self) -> int:
        """Return the most device memory that this rank has used so far."""
        ...


class CheckpointSaver(Protocol):
    """What saves a run's state; every rank calls each method alike."""

    def save(self, step: int, best: int | None = None) -> None:
        """Save the state after `step` steps; most of the work goes on behind the caller's back.

        `best`: a step whose checkpoint is kept besides the newest ones.
        """
        ...

    def save_model(self, step: int) -> None:
        """Save what the model after `step` steps is written from, and nothing to go on from."""
        ...

    def wait(self) -> None:
        """Wait for the last save, and raise what went wrong with it."""
        ...

    def failed(self) -> bool:
        """Whether something is known to have gone wrong with the last save."""
        ...


class MetricLogger(Protocol):
    """What takes scalars by name, besides metrics.jsonl."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of one step."""
        ...

    def close(self) -> None:
        """Flush what is pending."""
        ...
