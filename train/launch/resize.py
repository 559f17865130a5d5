"""Another size for a job that runs: the next ranks are made ready while the present ones train.

States, events, what is done and what is said: the table in docs/design.md, "Another size".
"""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from train.errors import AnyrankError, ExitCode, HostfileError
from train.hosts.hostfile import Hostfile, fill
from train.launch import progress, protocol, requests
from train.launch.gather import CLOSING, Crew, Muster, Select, require_all
from train.launch.job import LaunchJob
from train.launch.link import Link
from train.launch.outcome import Outcome
from train.launch.output import Output
from train.launch.pause import AwakeClock
from train.launch.regrow import Regrowth
from train.launch.requests import ResizeRequest

_LOOK = 0.5  # seconds between two looks for requests


class Standby:
    """Ranks that are made ready: their hosts asked, chosen, and the ranks started to wait.

    `own`: the numbers of GPUs that the present ranks use, by host.

    Raises:
        HostfileError: there is no ssh, or no srun, on this machine.
    """

    def __init__(
        self,
        job: LaunchJob,
        wanted: Hostfile,
        select: Select,
        args: tuple[str, ...],
        output: Output,
        own: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.job, self.select, self.args, self.output = job, select, args, output
        self.muster = Muster(job, wanted, own)
        self.found: Crew | None = None
        self.clock = AwakeClock()
        self.heard: dict[str, float] = {}
        self.beats: dict[str, tuple[Link, protocol.Message]] = {}
        self.kept: list[tuple[Link, protocol.Message | None]] = []

    @property
    def crew(self) -> Crew:
        """The hosts, once they are chosen."""
        assert self.found is not None
        return self.found

    def chosen(self, patience: float) -> bool:
        """Whether the hosts have been chosen, and their ranks started.

        Raises:
            UserError: a host cannot be used, as `select` decides, or does not match the others.
        """
        if self.found is None and self.muster.poll(patience):
            self.found = self.muster.crew(self.select, self.args, self.output)
            self.heard = {link.name: self.clock() for link in self.found.links}
            self.found.begin(self.job)
        return self.found is not None

    def imported(self) -> bool:
        """Whether all ranks wait for their turn.

        Raises:
            UserError: a host cannot be used, or one of its ranks has ended.
        """
        if not self.chosen(0.0):
            return False
        while True:
            try:
                self._heed(*self.crew.events.get_nowait())
            except queue.Empty:
                break
        for name, heard in self.heard.items():
            if self.clock() - heard > self.job.lease:
                raise HostfileError(f"host {name} has become silent")
        waiting = sum(message["waiting"] for _, message in self.beats.values())
        return bool(waiting == self.crew.hosts.slots)

    def _heed(self, link: Link, message: protocol.Message | None) -> None:
        self.heard[link.name] = self.clock()
        if message is None:
            raise HostfileError(f"host {link.name} is lost: {link.error() or 'it has gone'}")
        if message["kind"] == "beat":
            self.beats[link.name] = link, message
        elif message["kind"] == "death":
            said = (message["tail"].strip() or message["error"] or "without a word").splitlines()
            raise HostfileError(f"rank {message['rank']} on {link.name} ended: {said[-1]}")
        elif message["kind"] == "exit":
            raise HostfileError(f"the ranks on {link.name} ended with exit code {message['code']}")
        else:
            self.kept.append((link, message))

    def release(self) -> None:
        """Give back what the ranks have said while they waited, for whoever follows them."""
        for item in (*self.kept, *self.beats.values()):
            self.crew.events.put(item)

    def close(self, patience: float = CLOSING) -> None:
        """End all agents, and their ranks with them."""
        self.muster.close(patience)


@dataclass(frozen=True)
class Change:
    """A new size that is being taken: who asked (None: hosts came back) and the job as it was.

    `stopped`: when its ranks had; `last`: when they made their last step; since the epoch.
    """

    request: ResizeRequest | None
    before: LaunchJob
    stopped: float
    last: float

    def undone_by(self, outcome: Outcome) -> bool:
        """Whether the new size is given up for the old one: it has failed and made no step."""
        meant = (ExitCode.DONE, ExitCode.STOPPED, ExitCode.NON_FINITE)
        failed = outcome.ended is None and outcome.code not in meant
        return failed and not progress.steps(self.before.run_dir, self.stopped).last


class Resizer:
    """Attends to requests while a start runs; `ready` holds the ranks that wait to replace it."""

    def __init__(
        self, job: LaunchJob, crew: Crew | None, output: Output, change: Change | None
    ) -> None:
        hosts = None if crew is None else crew.hosts
        self.own = {} if crew is None else crew.gpus
        self.job, self.hosts, self.output, self.change = job, hosts, output, change
        self.looked = 0.0
        self.request: ResizeRequest | None = None
        self.target = job
        self.regrowth = (
            None if hosts is None or job.dry_run else Regrowth(job, hosts, output, self.own)
        )
        self.standby: Standby | None = None
        self.ready: Standby | None = None

    def attend(self) -> bool:
        """Look after requests; whether the present ranks are to save and stop now."""
        try:
            if self.standby is not None and self.standby.imported():
                self.ready = self.standby
                self.say(f"{self.standby.crew.hosts.slots} ranks wait: saving and stopping the "
                         "present ones after this step")  # fmt: skip
                return True
            if time.monotonic() - self.looked > _LOOK:
                self.looked = time.monotonic()
                self._look()
        except AnyrankError as error:
            self.refuse(f"{error}")
        return False

    def _look(self) -> None:
        if self.change is not None:
            self._tell_pause(self.change)
        elif self.standby is None:
            self.request = requests.oldest(self.job.run_dir)
            if self.request is not None:
                wanted = over(self.request, self.job, self.hosts or self.job.hostfile)
                lent = self.request.hosts or self.job.hostfile
                size = self.request.ranks
                self.target = replace(self.job, hostfile=lent, ranks=size, least=None)
                self._begin(wanted)
            elif self.regrowth is not None and (larger := self.regrowth.poll()) is not None:
                self.target = self.job
                self._begin(larger)

    def _begin(self, wanted: Hostfile) -> None:
        assert self.hosts is not None
        if wanted.hosts == self.hosts.hosts and self.request is not None:
            self.request.answer(f"the run has {self.hosts.slots} GPUs already: nothing to do", 0)
            self.request = None
            return
        self.say(f"resizing from {self.hosts.slots} to {wanted.slots}: its ranks are made ready")
        known = [host.name for host in self.hosts.hosts]
        select = partial(require_all, output=self.output, known=known)
        self.standby = Standby(self.job, wanted, select, self.job.resuming, self.output, self.own)

    def _tell_pause(self, change: Change) -> None:
        steps = progress.steps(self.job.run_dir, change.stopped)
        if steps.last:
            first = steps.first
            paused = f"; the pause took {first - change.last:.1f} s" if change.last else ""
            size = 0 if self.hosts is None else self.hosts.slots
            self.output.say(f"resized to {size} GPUs{paused}")
            if change.request is not None:
                change.request.answer(f"the run goes on with {size} GPUs{paused}", 0)
            self.change = None

    def say(self, text: str) -> None:
        """Tell the run's log and whoever asked."""
        self.output.say(text)
        if self.request is not None:
            self.request.answer(text)

    def refuse(self, why: str, after: str = "; the run goes on as it is") -> None:
        """Give up the other size, for a reason; the run goes on as it is."""
        said = f"not resized: {why}{after}"
        if self.request is not None or self.standby is not None:
            self.output.say(said)
        if self.request is not None:
            self.request.answer(said, ExitCode.USER)
        if self.standby is not None:
            self.standby.close()
        if self.regrowth is not None:
            self.regrowth.close()
            self.regrowth.give_up()
        self.request = self.standby = self.ready = None

    def take(self) -> tuple[LaunchJob, Standby, Change]:
        """Return the job of the new size, its ranks, and what there is to tell of it."""
        assert self.ready is not None
        last = progress.steps(self.job.run_dir, 0.0)
        self.ready.release()
        if self.regrowth is not None:
            self.regrowth.close()
        before = self.job
        if self.request is None and self.hosts is not None:  # what came back is left out then
            ranks = self.hosts.slots
            before = replace(self.job, hostfile=self.hosts, ranks=ranks, regrow=False)
        return self.target, self.ready, Change(self.request, before, time.time(), last.written)

    def close(self, outcome: Outcome | None) -> None:
        """Give up what is left to do when a start has ended."""
        ended = outcome is None or outcome.code in (ExitCode.DONE, ExitCode.STOPPED)
        why = "the run has ended" if ended else "the run had a fault meanwhile: ask again"
        if self.change is not None:
            self.request = self.change.request
            if outcome is not None and self.change.undone_by(outcome):
                size = 0 if self.hosts is None else self.hosts.slots
                why = f"{size} GPUs cannot do it, as is said above"
                if self.request is None:
                    self.output.say(f"not resized: {why}; what came back is left out")
        self.refuse(why, "" if ended else "; the run goes on as it was")


def over(request: ResizeRequest, job: LaunchJob, hosts: Hostfile) -> Hostfile:
    """Return the hosts for a request: those in use first, then others that the job may use.

    Raises:
        HostfileError: they have fewer GPUs, or pinned degrees do not divide them.
    """
    if request.ranks % job.unit:
        raise HostfileError(
            f"the run's pinned degrees take {job.unit} GPUs together, and {request.ranks} is no "
            "multiple of that"
        )
    lent = request.hosts or job.hostfile
    used = [host.name for host in hosts.hosts]
    order = sorted(lent.hosts, key=lambda host: host.name not in used)
    if job.in_slurm and (request.hosts is not None or request.ranks > lent.slots):
        raise HostfileError(
            f"the Slurm job has {job.hostfile.slots} GPUs and no other hosts: for more, stop it "
            f"and submit 'sbatch --nodes=M slurm/train.sbatch --run-dir {job.run_dir}'"
        )
    return fill(replace(lent, hosts=tuple(order)), request.ranks)
