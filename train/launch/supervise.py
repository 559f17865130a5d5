"""From the first start of a job to its end, over the loss of ranks and hosts, and other sizes.

Every start connects to all hosts at the same time, compares what their agents found, and runs the
ranks under the agents. After a fault all is taken down, the hosts are asked again, those that do
not answer are left out, and the run goes on from its newest checkpoint with what is left. For
another size the next ranks are made ready first; then the present ones save and stop.
"""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from functools import partial

from train.errors import ExitCode
from train.hosts.hostfile import Hostfile, fill
from train.launch import progress, requests
from train.launch.attempt import Attempt
from train.launch.gather import Select, TooFewError, leave_out, require_all
from train.launch.job import LaunchJob
from train.launch.oom import note
from train.launch.outcome import RESTARTS, Next, Outcome, decide, first_death
from train.launch.output import Output, Printer
from train.launch.owner import disown_empty, own
from train.launch.pause import told_pauses
from train.launch.resize import Change, Resizer, Standby
from train.text import GIB

_WAIT = 30.0  # seconds between two looks for GPUs that are waited for
_PAUSE = 1.0  # seconds between an end and the next start


def supervise(job: LaunchJob, signals: list[int]) -> int:
    """Run a job to its end and return its exit code.

    Raises:
        UserError: a host cannot be used as it is, or the run folder is in use; nothing has been
            started then.
    """
    printer = Printer()
    output = Output(None if job.dry_run else job.run_dir / "launch.log", printer.write)
    run = follow if job.dry_run else follow_owned
    try:
        with told_pauses():
            return run(job, output, signals)
    finally:
        printer.close()


def follow_owned(job: LaunchJob, output: Output, signals: list[int]) -> int:
    """Run a job whose folder nobody else runs, and return its exit code.

    Raises:
        UserError: a host cannot be used as it is, or the run folder is in use.
    """
    own(job.run_dir, output.say)
    stop = job.run_dir / "STOP"
    stop.unlink(missing_ok=True)  # of an earlier start
    requests.clear(job.run_dir, ended=False)
    try:
        return follow(job, output, signals)
    finally:
        stop.unlink(missing_ok=True)
        requests.clear(job.run_dir, ended=True)
        disown_empty(job.run_dir)


def follow(job: LaunchJob, output: Output, signals: list[int]) -> int:
    """Run a job to its end, start after start, and return its exit code.

    Raises:
        UserError: a host cannot be used as it is; nothing has been started then.
    """
    made = Attempts(job, output)
    ready = first_start(job, output, signals)
    change: Change | None = None
    marks: dict[str, float] = {}
    while True:
        outcome = Outcome(ended=ExitCode.STOPPED)
        resizer = Resizer(job, None if ready is None else ready.crew, output, change)
        if ready is not None:
            outcome = run_once(job, ready, marks, resizer, output, signals)
            marks = {"saved": outcome.ended_at, "ended": time.time()}
        stopped = bool(signals) or (job.run_dir / "STOP").exists()
        if outcome.code == ExitCode.STOPPED and resizer.ready is not None and not stopped:
            job, ready, change = resizer.take()
            continue
        resizer.close(outcome)
        undone = change if change is not None and change.undone_by(outcome) else None
        job, change = (job if undone is None else undone.before), None
        code = made.ends(job, outcome, signals, again=undone is not None)
        if code is not None:
            return code
        time.sleep(_PAUSE)
        ready = restart(replace(job, lost=outcome.lost), output, signals)


class Attempts:
    """How often a job was started without progress, and where it failed last."""

    def __init__(self, job: LaunchJob, output: Output) -> None:
        self.output = output
        self.without_progress, self.best = 0, job.reached
        self.place: tuple[str, int] | None = None
        self.last: tuple[int, float] | None = None  # the last start's code, and when it ended

    def ends(
        self, job: LaunchJob, outcome: Outcome, signals: list[int], *, again: bool
    ) -> int | None:
        """Return the job's exit code after a start; None if another follows, which is said.

        Args:
            again: another follows whatever became of this one.
        """
        doubted = self._doubts(job)
        self.last = outcome.code, time.time()
        reached = job.reached
        if reached > self.best:
            self.without_progress, self.best = 0, reached
        before, self.place = self.place, (outcome.error, progress.steps(job.run_dir, 0.0).last)
        repeats = outcome.error != "" and self.place == before
        following = decide(outcome, self.without_progress, repeats=repeats)
        following = Next.RESTART if again else following
        if signals and following is Next.RESTART:
            return ExitCode.STOPPED if signal.SIGUSR1 in signals else outcome.code
        if (job.run_dir / "STOP").exists() and following is Next.RESTART:
            self.output.say(f"STOP: not started again; step {reached} is saved")
            return ExitCode.STOPPED
        following = Next.END if job.dry_run else following
        if following is Next.GIVE_UP:
            why = f"{RESTARTS} restarts brought no progress past step {self.best}"
            if repeats:
                why = f"after step {self.place[1]} the same error came twice: {self.place[0]}"
            self.output.say(f"giving up: {why}")
        if following is not Next.RESTART:
            return outcome.code
        self.without_progress += 1
        if not again:
            lower_memory_cap(job, outcome, self.output, doubted=doubted)
        where = f"step {self.best}" if self.best else "the beginning: there is no checkpoint yet"
        count = f"restart {self.without_progress} of {RESTARTS}"
        self.output.say(f"starting again from {where} ({count})")
        return None

    def _doubts(self, job: LaunchJob) -> bool:
        """Whether ranks before this start's may have held memory that it then lacked.

        They ended for another reason, and no step has shown since that what they held is free.
        """
        if self.last is None or self.last[0] == ExitCode.OUT_OF_MEMORY:
            return False
        return progress.steps(job.run_dir, self.last[1]).last == 0


def lower_memory_cap(job: LaunchJob, outcome: Outcome, output: Output, *, doubted: bool) -> None:
    """After a start that ran out of memory, see to it that the next plan is a smaller one.

    Args:
        doubted: others may have held the memory: the same plan is tried once more.
    """
    death = first_death(outcome.deaths)
    if outcome.code != ExitCode.OUT_OF_MEMORY or death is None:
        return
    if doubted:
        output.say("memory ran out right after other ranks had ended: the same plan goes once more")
        return
    predicted = note(job.run_dir, death.rank, death.host)
    size = "" if predicted is None else f", predicted at {predicted / GIB:.2f} GiB a device,"
    output.say(f"the plan{size} did not fit: the next one will be smaller")


def first_start(job: LaunchJob, output: Output, signals: list[int]) -> Standby | None:
    """Start the ranks on the hosts that were asked for, all of them; None: stopped before.

    A job that takes what there is starts on the hosts that can be used.

    Raises:
        UserError: a host does not answer, or does not match the others.
    """
    if job.least is not None:
        return start(job, job.hostfile, available(job, output), job.first, output, signals)
    wanted = fill(job.hostfile, job.ranks)
    return start(job, wanted, partial(require_all, output=output), job.first, output, signals)


def restart(job: LaunchJob, output: Output, signals: list[int]) -> Standby | None:
    """Start the ranks on what is left of the job's hosts; None: stopped before.

    Raises:
        HostfileError: no host is left.
    """
    return start(job, job.hostfile, available(job, output), job.resuming, output, signals)


def available(job: LaunchJob, output: Output) -> Select:
    """Return what chooses the hosts that can be used, up to the job's size."""
    return partial(leave_out, ranks=job.ranks, output=output, least=job.least, unit=job.unit)


def start(
    job: LaunchJob,
    wanted: Hostfile,
    select: Select,
    args: tuple[str, ...],
    output: Output,
    signals: list[int],
) -> Standby | None:
    """Start the ranks on those hosts that `select` returns, waiting while there are too few.

    Raises:
        UserError: a host cannot be used, as `select` decides, or does not match the others.
    """
    told = ""
    while True:
        try:
            return start_now(job, wanted, select, args, output, signals)
        except TooFewError as error:
            if str(error) != told:
                output.say(f"waiting: {error}")
            told = str(error)
        until = time.monotonic() + min(_WAIT, job.probe)
        while time.monotonic() < until:
            if signals or (job.run_dir / "STOP").exists():
                output.say("stopped while waiting for GPUs: nothing was lost")
                return None
            time.sleep(0.2)


def start_now(
    job: LaunchJob,
    wanted: Hostfile,
    select: Select,
    args: tuple[str, ...],
    output: Output,
    signals: list[int],
) -> Standby | None:
    """Connect to the wanted hosts and start the ranks on those that `select` returns.

    Raises:
        UserError: a host cannot be used, as `select` decides, or does not match the others.
    """
    standby = Standby(job, wanted, select, args, output)
    try:
        while not signals and not standby.chosen(0.1):
            pass
    except BaseException:
        standby.close()
        raise
    if not signals:
        return standby
    name = signal.Signals(signals[0]).name
    output.say(f"{name}: stopped before the ranks had begun: nothing was lost")
    standby.close(patience=1.0)  # they have no ranks, and may be looking at a folder
    return None


def run_once(
    job: LaunchJob,
    ready: Standby,
    marks: dict[str, float],
    resizer: Resizer,
    output: Output,
    signals: list[int],
) -> Outcome:
    """Let ranks that wait go, and return what became of them; none is left when this returns."""
    attend = (lambda: False) if job.dry_run else resizer.attend
    try:
        outcome = Attempt(ready.crew, job, output, signals, attend).run(marks)
    except BaseException:
        resizer.close(None)
        raise
    finally:
        ready.close()
    if job.dry_run:
        return replace(outcome, done=True)
    silent = outcome.codes and not (any(outcome.codes) or outcome.deaths)
    if silent and outcome.code == ExitCode.FAULT:
        output.say(f"the ranks ended without finishing: {job.run_dir / 'DONE'} is missing")
    return outcome
