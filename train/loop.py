"""The training loop, on one screen: fetch, step, record; evaluate now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

from train.config import OptimizerConfig, RunConfig
from train.data.batch import MicroBatch
from train.data.feed import (
    AHEAD,
    Placement,
    Split,
    StepBatch,
    prefetched,
    step_batch,
    whole_split,
)
from train.errors import NonFiniteError
from train.interfaces import CheckpointSaver, MetricLogger, StepOutcome, Trainer
from train.launch.stopping import StopRequests
from train.output.console import Console
from train.output.record import EvalRecord, RestartRecord, RunFolder, StepRecord
from train.planning.balance import Pace, is_weighed


class NoSaver:
    """Saves nothing."""

    def save(self, step: int, best: int | None = None) -> None:
        """Do nothing."""

    def save_model(self, step: int) -> None:
        """Do nothing."""

    def wait(self) -> None:
        """Do nothing."""

    def failed(self) -> bool:
        """Return False: there is no save that could fail."""
        return False


RECENT = 20  # steps whose median tells how long the others will take
SETTLED = 3  # steps after which the plan's prediction is compared with what was measured


@dataclass(frozen=True)
class TrainingJob:
    """What a run trains on and how far: steps `start` to `total`, both counted from 0.

    `pending_eval`: an evaluation after step `start` that an interrupted run has not made.
    `evals`: evaluations up to there that count for --early-stop.
    `expected`: seconds of a step and peak bytes -> the plan's prediction against them, in words.
    `balanced`: a placement and the paces of all ranks -> the next placement, what is told of it.
    `restarted`: this job, the start's number and the time of its first step -> what is told of it.
    """

    config: RunConfig
    train: Split
    validation: Split
    placement: Placement
    start: int
    total: int
    plan_digest: str
    world_size: int
    mfu: Callable[[StepBatch, float], float | None]
    pending_eval: bool = False
    evals: tuple[EvalRecord, ...] = ()
    expected: Callable[[float, float], str] | None = None
    balanced: Callable[[Placement, Sequence[Pace]], tuple[Placement, str]] | None = None
    restarted: Callable[[TrainingJob, int, float], RestartRecord] | None = None


@dataclass(frozen=True)
class Outputs:
    """Where results go; on ranks other than 0 the folder is None and the console silent."""

    console: Console
    folder: RunFolder | None
    tracker: MetricLogger
    path: Path


def fit(
    engine: Trainer, job: TrainingJob, out: Outputs, saver: CheckpointSaver, stop: StopRequests
) -> tuple[StepRecord, ...]:
    """Train from step `job.start` to `job.total`; return a record per step.

    Raises:
        NonFiniteError: a loss or gradient was not finite; nothing of that step was applied.
        StopRequested: a rank was asked to stop; everything up to that step is saved.
        CheckpointError: a checkpoint could not be saved.
    """
    data, output = job.config.data, job.config.output

    def make(step: int) -> Callable[[], StepBatch]:
        """With the placement as it is now: see `prefetched`."""
        return partial(step_batch, job.train, data.seed, data.batch_size, step, job.placement)

    records = []
    evals = job.evals
    with out.console.bar(job.start, job.total) as bar, stop.deferred(), _saved(saver):
        if job.pending_eval:
            measured = evaluate(engine, job, out, job.start, stop)
            if measured is None:
                raise stop.finished(job.start, job.total)
            evals += (measured,) if measured.step else ()
        over = is_over(evals, output.early_stop)
        began = time.perf_counter()
        for step, batch in enumerate(prefetched(make, job.start, job.total), job.start):
            if over:
                break
            lr = learning_rate(job.config.optimizer, step, job.total)
            ending = stop.asked() or saver.failed()
            found = engine.step(step, batch.micros, batch.terms, lr, stop=ending)
            seconds = time.perf_counter() - began
            record = _record(job, step, batch, found, lr, seconds, engine.peak_bytes())
            records.append(record)
            _report(records, job, out)
            if len(records) == SETTLED and job.expected is not None:
                fastest = min(record.seconds for record in records)
                out.console.say(f"The plan: {job.expected(fastest, record.peak_bytes)}")
            job = _weighed(engine, job, out, step)
            bar.update()
            ended = found.stop
            if is_due(step + 1, job.total, output.eval_step) and not ended:
                measured = evaluate(engine, job, out, step + 1, stop)
                ended = measured is None
                evals += (measured,) if measured else ()
            over = is_over(evals, output.early_stop)
            _save(saver, job, step + 1, evals, ended=ended, last=over or step + 1 == job.total)
            if ended:
                saver.wait()
                raise stop.finished(step + 1, job.total)
            began = time.perf_counter()
        if over:
            out.console.say(
                f"--early-stop {output.early_stop}: so many evaluations are no better than that "
                f"after step {best_step(evals)}, so training ends"
            )
    return tuple(records)


def _save(
    saver: CheckpointSaver,
    job: TrainingJob,
    done: int,
    evals: Sequence[EvalRecord],
    *,
    ended: bool,
    last: bool,
) -> None:
    """Save what is due after `done` steps: `ended` on request, or `last` of the run."""
    output = job.config.output
    best = best_step(evals) if output.early_stop else None
    if last and not ended and output.save_only_model:
        if best in (None, done):  # a better one is saved already
            saver.save_model(done)
    elif ended or last or best == done or is_due(done, job.total, output.save_step):
        saver.save(done, best)


def best_step(evals: Sequence[EvalRecord]) -> int | None:
    """Return after which step the evaluation was best, the first of equal ones; None: of none."""
    best = min(evals, key=lambda one: (one.eval_loss, one.step), default=None)
    return best.step if best else None


def counted(evals: Sequence[EvalRecord], kept: Collection[int]) -> tuple[EvalRecord, ...]:
    """Return the evaluations that --early-stop counts: those after the best whose model is gone.

    The best of what is left is the best of a model that there is. A start that goes on later counts
    the same.

    Args:
        kept: the steps of which there is a checkpoint, or a model.
    """
    while (best := best_step(evals)) not in (None, *kept):
        evals = [one for one in evals if best is not None and one.step > best]
    return tuple(evals)


def is_over(evals: Sequence[EvalRecord], patience: int | None) -> bool:
    """Whether `patience` evaluations, if that is given, have come since the best one."""
    best = best_step(evals)
    if patience is None or best is None:
        return False
    return sum(one.step > best for one in evals) >= patience


def _weighed(engine: Trainer, job: TrainingJob, out: Outputs, step: int) -> TrainingJob:
    """Return the job as it goes on after step `step`: a replica that is slow gets less work."""
    if job.balanced is None or not is_weighed(step) or step + AHEAD >= job.total:
        return job
    placement, said = job.balanced(job.placement, engine.paces())
    if said:
        out.console.say(f"{said} from step {step + AHEAD + 1} on")
    return replace(job, placement=placement)


@contextmanager
def _saved(saver: CheckpointSaver) -> Iterator[None]:
    """Finish the last save at the end, and also when the loop ends with a step that is bad."""
    try:
        yield
    except NonFiniteError:
        saver.wait()
        raise
    saver.wait()


def evaluate(
    engine: Trainer, job: TrainingJob, out: Outputs, step: int, stop: StopRequests
) -> EvalRecord | None:
    """Measure the loss of the whole held-out split, weighted by tokens, after `step` steps.

    Returns:
        None when a rank was asked to stop meanwhile: nothing is recorded then.

    Raises:
        NonFiniteError: the loss is not finite, on every rank alike.
    """
    stopped = False

    def until_stopped() -> Iterator[Sequence[MicroBatch]]:
        nonlocal stopped
        for micros in whole_split(job.validation, job.config.data.batch_size, job.placement):
            stopped = engine.agree(wish=stop.asked())
            if stopped:
                return
            yield micros

    loss, tokens = engine.evaluate(until_stopped())
    if stopped:
        return None
    record = EvalRecord(step, loss / max(1, tokens), tokens, job.validation.fingerprint)
    if not math.isfinite(record.eval_loss):
        raise NonFiniteError(
            f"the evaluation after step {step} is not finite (loss {record.eval_loss:g}), so this "
            "step is not saved: lower --lr, or look at the held-out samples"
        )
    if out.folder is not None:
        out.folder.write(record)
        out.tracker.write(step, {"eval/loss": record.eval_loss})
    noun = "pairs" if job.config.data.objective == "dpo" else "tokens"
    out.console.say(f"Evaluation after step {step}: loss {record.eval_loss:.6f} on {tokens} {noun}")
    return record


def is_due(done: int, total: int, every: int) -> bool:
    """Whether what is done every so many steps, and at the end, is due after `done` steps."""
    return done == total or (every > 0 and done % every == 0)


def _record(
    job: TrainingJob,
    step: int,
    batch: StepBatch,
    found: StepOutcome,
    lr: float,
    seconds: float,
    peak: int,
) -> StepRecord:
    return StepRecord(
        step=step + 1,
        loss=found.loss,
        lr=lr,
        grad_norm=found.grad_norm,
        samples=batch.samples,
        loss_tokens=batch.loss_tokens,
        tokens=batch.tokens,
        padded_tokens=batch.samples * job.config.data.block_size,
        seconds=seconds,
        tokens_per_s=batch.tokens / seconds,
        mfu=job.mfu(batch, seconds),
        world_size=job.world_size,
        plan=job.plan_digest,
        sample_hash=batch.sample_hash,
        peak_bytes=peak,
        skipped=found.skipped,
        time=time.time(),
    )


def _report(records: Sequence[StepRecord], job: TrainingJob, out: Outputs) -> None:
    if out.folder is None:
        return
    record = records[-1]
    if len(records) == 1 and job.restarted is not None:
        out.folder.write(job.restarted(job, int(out.folder.attempt.name), record.time))
    out.folder.write(record)
    if record.skipped:
        out.console.say(
            f"Step {record.step}: the gradient overflowed fp16 {record.skipped} times; nothing was "
            "applied then, and the same samples went again at half the loss scale"
        )
    names = ("loss", "lr", "grad_norm", "tokens_per_s", "seconds")
    out.tracker.write(record.step, {f"train/{name}": getattr(record, name) for name in names})
    if record.step % job.config.output.log_interval == 0 or record.step == job.total:
        usual = median(one.seconds for one in records[-RECENT:])
        epoch = record.step * job.config.data.batch_size / job.train.mixture.places
        out.console.step(record, job.total, epoch, usual * (job.total - record.step))


def warmup_steps(config: OptimizerConfig, total: int) -> int:
    """Return over how many of a run's `total` steps the learning rate rises."""
    ratio = config.warmup_ratio
    return config.warmup_steps if ratio is None else round(ratio * total)


def short_of_rate(config: OptimizerConfig, total: int) -> str:
    """Say that the learning rate of a run of `total` steps stays below --lr; empty: it does not."""
    rising = warmup_steps(config, total)
    if rising <= total:
        return ""
    return (
        f"the learning rate does not reach --lr: its warm-up of {rising} steps is longer than the "
        f"run of {total}"
    )


def learning_rate(config: OptimizerConfig, step: int, total: int) -> float:
    """Return the rate of step `step` (from 0) of a run of `total` steps.

    A linear rise over the warm-up reaches the full rate at its last step; after it the rate stays,
    or falls to nothing at the end along a line or half a cosine.
    """
    warmup = warmup_steps(config, total)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if config.lr_schedule == "linear":
        return config.lr * (1 - done)
    if config.lr_schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    return config.lr
