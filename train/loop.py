"""The training loop, on one screen: fetch, step, record; evaluate now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from train.config import RunConfig, World
from train.console import Console
from train.data.batch import MicroBatch
from train.data.feed import Layout, Share, Split, prefetched, step_share, whole_split
from train.errors import NonFiniteError
from train.record import EvalRecord, RunFolder, StepRecord
from train.schedule import learning_rate
from train.sinks import Sink
from train.stopping import Stopping


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

    @property
    def stop(self) -> bool:
        """Whether any rank asked to stop."""
        ...


class Engine(Protocol):
    """What the loop needs of an engine."""

    def step(
        self, step: int, micros: Sequence[MicroBatch], loss_tokens: int, lr: float, stop: bool
    ) -> StepResult:
        """Take one optimizer step."""
        ...

    def evaluate(self, batches: Iterable[Sequence[MicroBatch]]) -> tuple[float, int]:
        """Return summed loss and tokens."""
        ...

    def agree(self, wish: bool) -> bool:
        """Whether any rank wishes so."""
        ...

    def peak_bytes(self) -> int:
        """Return the largest memory used so far."""
        ...


class Saver(Protocol):
    """What the loop needs to save; every rank calls each method alike."""

    def save(self, step: int) -> None:
        """Save the state after `step` steps, for the most part behind the loop's back."""
        ...

    def wait(self) -> None:
        """Wait for the last save, and raise what went wrong with it."""
        ...

    def failed(self) -> bool:
        """Whether something is known to have gone wrong with the last save."""
        ...


class NoSaver:
    """Saves nothing."""

    def save(self, step: int) -> None:
        """Do nothing."""

    def wait(self) -> None:
        """Do nothing."""

    def failed(self) -> bool:
        """Never."""
        return False


UNSAVED = NoSaver()
SETTLED = 3  # steps after which the plan's prediction is compared with what was measured
UNASKED = Stopping(World(), sys.exit)


@dataclass(frozen=True)
class Job:
    """What a run trains on and how far: steps `start` to `total`, both counted from 0.

    `owed`: an evaluation after step `start` that was not made before the run was interrupted.
    `expected`: seconds of a step and peak bytes -> the plan's prediction against them, in words.
    """

    config: RunConfig
    train: Split
    held_out: Split
    layout: Layout
    start: int
    total: int
    plan: str
    world_size: int
    mfu: Callable[[Share, float], float | None]
    owed: bool = False
    expected: Callable[[float, float], str] | None = None


@dataclass(frozen=True)
class Outputs:
    """Where results go; on ranks other than 0 the folder is None and the console silent."""

    console: Console
    folder: RunFolder | None
    sink: Sink
    path: Path


def fit(
    engine: Engine, job: Job, out: Outputs, saver: Saver = UNSAVED, stop: Stopping = UNASKED
) -> tuple[StepRecord, ...]:
    """Train from step `job.start` to `job.total`; return a record per step.

    Raises:
        NonFiniteError: a loss or gradient was not finite; nothing of that step was applied.
        StopRequested: a rank was asked to stop; everything up to that step is saved.
        CheckpointError: a checkpoint could not be saved.
    """
    data, output = job.config.data, job.config.output
    make = partial(_share, job.train, data.seed, data.batch_size, job.layout)
    records = []
    with out.console.bar(job.start, job.total) as bar, stop.deferred(), _saved(saver):
        if job.owed and not evaluate(engine, job, out, job.start, stop):
            raise stop.obeyed(job.start, job.total)
        began = time.perf_counter()
        for step, share in enumerate(prefetched(make, job.start, job.total), job.start):
            lr = learning_rate(job.config.optimizer, step, job.total)
            ending = stop.asked() or saver.failed()
            found = engine.step(step, share.micros, share.loss_tokens, lr, ending)
            seconds = time.perf_counter() - began
            record = _record(job, step, share, found, lr, seconds, engine.peak_bytes())
            records.append(record)
            _report(record, job, out)
            if len(records) == SETTLED and job.expected is not None:
                fastest = min(record.seconds for record in records)
                out.console.say(f"The plan: {job.expected(fastest, record.peak_bytes)}")
            bar.update()
            ended = found.stop
            if is_due(step + 1, job.total, output.eval_step) and not ended:
                ended = evaluate(engine, job, out, step + 1, stop) is None
            if ended or is_due(step + 1, job.total, output.save_step):
                saver.save(step + 1)
            if ended:
                saver.wait()
                raise stop.obeyed(step + 1, job.total)
            began = time.perf_counter()
    return tuple(records)


@contextmanager
def _saved(saver: Saver) -> Iterator[None]:
    """Finish the last save at the end, and also when the loop ends with a step that is bad."""
    try:
        yield
    except NonFiniteError:
        saver.wait()
        raise
    saver.wait()


def evaluate(
    engine: Engine, job: Job, out: Outputs, step: int, stop: Stopping = UNASKED
) -> EvalRecord | None:
    """Measure the loss of the whole held-out split, weighted by tokens, after `step` steps.

    Returns:
        None when a rank was asked to stop meanwhile: nothing is recorded then.
    """
    stopped = False

    def until_stopped() -> Iterator[Sequence[MicroBatch]]:
        nonlocal stopped
        for micros in whole_split(job.held_out, job.config.data.batch_size, job.layout):
            stopped = engine.agree(stop.asked())
            if stopped:
                return
            yield micros

    loss, tokens = engine.evaluate(until_stopped())
    if stopped:
        return None
    record = EvalRecord(step, loss / max(1, tokens), tokens)
    if out.folder is not None:
        out.folder.write(record)
        out.sink.write(step, {"eval/loss": record.eval_loss})
    out.console.say(f"Evaluation after step {step}: loss {record.eval_loss:.6f} on {tokens} tokens")
    return record


def _share(split: Split, seed: int, batch: int, layout: Layout, step: int) -> Share:
    return step_share(split, seed, batch, step, layout)


def is_due(done: int, total: int, every: int) -> bool:
    """Whether what is done every so many steps, and at the end, is due after `done` steps."""
    return done == total or (every > 0 and done % every == 0)


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
