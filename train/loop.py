"""The training loop, on one screen: fetch, step, record; evaluate now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from train.config import RunConfig
from train.console import Console
from train.data.batch import MicroBatch
from train.data.feed import Layout, Share, Split, prefetched, step_share, whole_split
from train.record import EvalRecord, RunFolder, StepRecord
from train.schedule import learning_rate
from train.sinks import Sink


class StepResult(Protocol):
    """What the engine says of a step."""

    @property
    def loss(self) -> float:
        """Mean over the step's loss tokens, in nats."""
        ...

    @property
    def grad_norm(self) -> float:
        """Global norm before clipping."""
        ...


class Engine(Protocol):
    """What the loop needs of an engine."""

    def step(
        self, step: int, micros: Sequence[MicroBatch], loss_tokens: int, lr: float
    ) -> StepResult:
        """Take one optimizer step."""
        ...

    def evaluate(self, batches: Iterable[Sequence[MicroBatch]]) -> tuple[float, int]:
        """Return summed loss and tokens."""
        ...

    def peak_bytes(self) -> int:
        """Return the largest memory used so far."""
        ...


@dataclass(frozen=True)
class Job:
    """What a run trains on and how far: steps `start` to `total`, both counted from 0."""

    config: RunConfig
    train: Split
    held_out: Split
    layout: Layout
    start: int
    total: int
    plan: str
    world_size: int
    mfu: Callable[[Share, float], float | None]


@dataclass(frozen=True)
class Outputs:
    """Where results go; on ranks other than 0 the folder is None and the console silent."""

    console: Console
    folder: RunFolder | None
    sink: Sink
    path: Path


def fit(engine: Engine, job: Job, out: Outputs) -> tuple[StepRecord, ...]:
    """Train from step `job.start` to `job.total`; return a record per step.

    Raises:
        NonFiniteError: a loss or gradient was not finite; nothing of that step was applied.
    """
    data = job.config.data
    make = partial(_share, job.train, data.seed, data.batch_size, job.layout)
    records = []
    with out.console.bar(job.start, job.total) as bar:
        began = time.perf_counter()
        for step, share in enumerate(prefetched(make, job.start, job.total), job.start):
            lr = learning_rate(job.config.optimizer, step, job.total)
            found = engine.step(step, share.micros, share.loss_tokens, lr)
            seconds = time.perf_counter() - began
            record = _record(job, step, share, found, lr, seconds, engine.peak_bytes())
            records.append(record)
            _report(record, job, out)
            bar.update()
            if _evaluates(job, step + 1):
                evaluate(engine, job, out, step + 1)
            began = time.perf_counter()
    return tuple(records)


def evaluate(engine: Engine, job: Job, out: Outputs, step: int) -> EvalRecord:
    """Measure the loss of the whole held-out split, weighted by tokens, after `step` steps."""
    batches = whole_split(job.held_out, job.config.data.batch_size, job.layout)
    loss, tokens = engine.evaluate(batches)
    record = EvalRecord(step, loss / max(1, tokens), tokens)
    if out.folder is not None:
        out.folder.write(record)
        out.sink.write(step, {"eval/loss": record.eval_loss})
    out.console.say(f"Evaluation after step {step}: loss {record.eval_loss:.6f} on {tokens} tokens")
    return record


def _share(split: Split, seed: int, batch: int, layout: Layout, step: int) -> Share:
    return step_share(split, seed, batch, step, layout)


def _evaluates(job: Job, done: int) -> bool:
    every = job.config.output.eval_step
    return done == job.total or (every > 0 and done % every == 0)


def _record(
    job: Job, step: int, share: Share, found: StepResult, lr: float, seconds: float, peak: int
) -> StepRecord:
    return StepRecord(
        step=step + 1,
        loss=found.loss,
        lr=lr,
        grad_norm=found.grad_norm,
        samples=share.samples,
        loss_tokens=share.loss_tokens,
        tokens=share.tokens,
        padded_tokens=share.samples * job.config.data.block_size,
        seconds=seconds,
        tokens_per_s=share.tokens / seconds,
        mfu=job.mfu(share, seconds),
        world_size=job.world_size,
        plan=job.plan,
        sample_hash=share.sample_hash,
        peak_bytes=peak,
        time=time.time(),
    )


def _report(record: StepRecord, job: Job, out: Outputs) -> None:
    if out.folder is None:
        return
    out.folder.write(record)
    names = ("loss", "lr", "grad_norm", "tokens_per_s", "seconds")
    out.sink.write(record.step, {f"train/{name}": getattr(record, name) for name in names})
    if record.step % job.config.output.log_interval == 0 or record.step == job.total:
        out.console.step(record, job.total)
