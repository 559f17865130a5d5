"""Hosts and GPUs that a job lacks: asked now and then, and taken back when they are good again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from train.hosts.hostfile import Host, Hostfile, fill
from train.launch import preflight, progress
from train.launch.gather import Muster
from train.launch.job import LaunchJob
from train.launch.output import Output
from train.launch.pause import AwakeClock

_COST = 60.0  # seconds that a pause is taken to cost


class Regrowth:
    """Looks after what a start lacks; `poll` says over which hosts the run is to go on.

    The next checkpoint is waited for, if the run makes any: the pause then costs no save of its
    own, and a host that comes and goes is no reason for a pause each time.
    """

    def __init__(
        self,
        job: LaunchJob,
        hosts: Hostfile,
        output: Output,
        own: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.job, self.hosts, self.output, self.own = job, hosts, output, own
        has = {host.name: host.slots for host in hosts.hosts}
        lacking = tuple(host for host in job.hostfile.hosts if has.get(host.name, 0) < host.slots)
        self.lacking = replace(job.hostfile, hosts=lacking)
        self.wanted = min(job.ranks, job.hostfile.slots) if job.regrow else 0
        self.clock, self.due = AwakeClock(), job.probe
        self.muster: Muster | None = None
        self.found: Hostfile | None = None
        self.saved = 0

    def poll(self) -> Hostfile | None:
        """Go on looking; return the hosts of a larger run, once they are to be taken.

        Raises:
            HostfileError: there is no ssh, or no srun, on this machine.
        """
        if self.found is not None:
            saves = self.job.saves and progress.newest_checkpoint(self.job.run_dir) == self.saved
            return None if saves else self.found
        if self.muster is not None and self.muster.poll(0.0):
            self._judge(self.muster)
            self.close()
        elif self.muster is None and self.clock() > self.due and self.hosts.slots < self.wanted:
            self.put_off()
            self.muster = Muster(self.job, self.lacking, self.own)
        return None

    def put_off(self) -> None:
        """Look again only after a while."""
        self.due = self.clock() + self.job.probe

    def give_up(self) -> None:
        """Leave out what was found, and look again only after a while."""
        self.found = None
        self.put_off()

    def close(self) -> None:
        """End what has been started to look."""
        if self.muster is not None:
            self.muster.close(patience=1.0)
            self.muster = None

    def _judge(self, muster: Muster) -> None:
        more = {host.name: host for host in _good(muster)}
        have = {host.name: host for host in self.hosts.hosts}
        lent = tuple(have.values()) if not more else tuple((have | more).values())
        whole = replace(self.job.hostfile, hosts=lent)
        size = min(self.wanted, whole.slots)
        larger = fill(whole, size - size % self.job.unit)
        if larger.slots <= self.hosts.slots:
            return
        names = ", ".join(more)
        if not self._pays(larger.slots):
            self.output.say(f"host {names} is good again, but too few steps remain to take it back")
            self.wanted = 0
            return
        when = "at the next checkpoint" if self.job.saves else "now"
        self.output.say(f"host {names} is good again: it is taken back {when}")
        self.found, self.saved = larger, progress.newest_checkpoint(self.job.run_dir)

    def _pays(self, slots: int) -> bool:
        """Whether the steps that remain get faster by more than the pause, if that is known."""
        done, total = progress.steps(self.job.run_dir, 0.0), progress.total(self.job.run_dir)
        if total is None or done.usual is None:
            return True
        return (total - done.last) * done.usual * (1 - self.hosts.slots / slots) > _COST


def _good(muster: Muster) -> Iterator[Host]:
    for host, link in zip(muster.wanted.hosts, muster.links, strict=True):
        left = preflight.left_of(host, link.report)
        if not preflight.error_of(left, link.report, ""):
            yield left
