"""The hosts of one start: asked what they are, chosen, and told what to run."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from train.errors import HostfileError
from train.hosts import network
from train.hosts.hostfile import Host, Hostfile, fill
from train.hosts.probe import HostReport
from train.hosts.remote import here
from train.hosts.shared_folder import shared_token
from train.launch import command, preflight, protocol, terminal
from train.launch.free import free_of
from train.launch.job import LaunchJob
from train.launch.link import Events, Link
from train.launch.output import Output
from train.launch.pause import AwakeClock, beating
from train.planning.cluster import links_told

AGENT = "train.launch.agent"
CLOSING = 15.0  # seconds for all agents to end their ranks
_HELLO = 40.0  # seconds for an agent to report: ssh, a shell, Python from a cold disk
_LOST = 4.0  # seconds that a host which was lost just now may take longer than the others

Select = Callable[[Hostfile, Sequence[Link]], Hostfile]


@dataclass(frozen=True)
class HostCommand:
    """What one host is to run: `ranks` processes of a Python script, numbered from `first`."""

    argv: tuple[str, ...]
    env: dict[str, str]
    first: int
    ranks: int


@dataclass(frozen=True)
class Crew:
    """Hosts that were chosen, their agents, and what each is to run.

    `master`: the address at which the ranks meet; None on one machine. `gpus`: the numbers of those
    that the ranks of a host use.
    """

    hosts: Hostfile
    links: tuple[Link, ...]
    events: Events
    starts: tuple[HostCommand, ...]
    master: str | None
    gpus: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def begin(self, job: LaunchJob) -> None:
        """Start the ranks; they wait, all imported, for `go`."""
        size = terminal.own_size()
        shared = {"terminal": size, "cwd": str(job.cwd), "master": self.master, "lease": job.lease}
        for link, start in zip(self.links, self.starts, strict=True):
            link.send("start", **asdict(start), **shared)


class Muster:
    """Agents on all hosts of a start, asked what their hosts are; no error leaves one behind.

    Of a job of free GPUs only, those that others use are left out of what a host has; `own` are
    the numbers of those that the run itself uses, by host.

    Raises:
        HostfileError: there is no ssh, or no srun, on this machine.
    """

    def __init__(
        self, job: LaunchJob, wanted: Hostfile, own: Mapping[str, tuple[int, ...]] | None = None
    ) -> None:
        self.job, self.wanted, self.own = job, wanted, own or {}
        self.events: Events = queue.Queue()
        self.links: list[Link] = []
        self.clock, self.looking = AwakeClock(), ExitStack()
        self.token: Path | None = None
        self.stack = ExitStack()
        try:
            for host in wanted.hosts:
                self.links.append(connect(job, host, self.events))
            self.stack.enter_context(beating(self.links))
            if not job.dry_run:
                self.token = self.looking.enter_context(shared_token(job.run_dir))
        except BaseException:
            self.close()
            raise
        self.waiting = set(self.links)
        self.until = _HELLO  # by `clock`

    def poll(self, patience: float) -> bool:
        """Take what one agent says; whether all have answered, or are known not to.

        An agent reports, and looks for the token that proves that its host sees the run folder.
        """
        with suppress(queue.Empty):
            self._heed(*self.events.get(timeout=patience))
        now = self.clock()
        others = any(link.name not in self.job.lost for link in self.waiting)
        if others or not any(link.report for link in self.links if link not in self.waiting):
            self.until = min(_HELLO, now + _LOST)
        over = not self.waiting or now > self.until
        if over:
            self.looking.close()
        return over

    def _heed(self, link: Link, message: protocol.Message | None) -> None:
        kind = message["kind"] if message else ""
        if message is None:  # an agent that had reported may end as well
            link.report = None
        elif kind == "hello":
            report = HostReport.from_json(message["report"])
            if self.job.free_only:
                report = free_of(report, self.own.get(link.name, ()))
            link.report, link.reported = report, time.time()
            if self.token is not None:
                link.send("look", path=str(self.token))
                return
        elif kind == "seen" and link.report is not None:
            link.report = replace(link.report, shared=bool(message["seen"]))
        if kind in ("", "hello", "seen"):
            self.waiting.discard(link)

    def crew(self, select: Select, args: tuple[str, ...], output: Output) -> Crew:
        """Return those hosts that `select` chooses, and end the agents of the others.

        Raises:
            UserError: a host cannot be used, as `select` decides, or does not match the others.
        """
        hosts = select(self.wanted, self.links)
        names = {host.name for host in hosts.hosts}
        chosen = tuple(link for link in self.links if link.name in names)
        close_all([link for link in self.links if link not in chosen], 1.0)  # they have no ranks
        reports = tuple(link.report for link in chosen if link.report is not None)
        for error in preflight.differences(reports):
            raise HostfileError(error)
        starts, master = plan_starts(self.job, hosts, chosen, reports, args)
        describe(hosts, chosen, reports, starts, output)
        gpus = {host.name: report.gpus[: host.slots]
                for host, report in zip(hosts.hosts, reports, strict=True)}  # fmt: skip
        return Crew(hosts, chosen, self.events, tuple(starts), master, gpus)

    def close(self, patience: float = CLOSING) -> None:
        """End all agents that are left; one that takes more than `patience` seconds is dropped."""
        self.looking.close()
        self.stack.close()
        close_all([link for link in self.links if not link.closed], patience)


def connect(job: LaunchJob, host: Host, events: Events) -> Link:
    """Start the agent of one host.

    Raises:
        HostfileError: there is no ssh, or no srun, on this machine.
    """
    if network.is_here(host.name):
        return Link(host.name, here(AGENT), job.env, events)
    argv = job.reach(host.name, AGENT, job.cwd)
    try:
        return Link(host.name, argv, job.env, events)
    except OSError as error:
        raise HostfileError(
            f"host {host.name} cannot be reached, as '{argv[0]}' cannot be started here "
            f"({error.strerror}): install it (on Debian: apt-get install openssh-client)"
        ) from None


def require_all(
    wanted: Hostfile, links: Sequence[Link], output: Output, known: Sequence[str] = ()
) -> Hostfile:
    """Return the hosts that were wanted, having said what each may fail of later.

    Args:
        known: hosts of which that has been said.

    Raises:
        HostfileError: one of them cannot be used; what the others lack is said before.
    """
    errors = []
    for host, link in zip(wanted.hosts, links, strict=True):
        error = preflight.error_of(host, link.report, link.error())
        if error:
            errors.append(error)
        elif link.report is not None and host.name not in known:
            crowding = preflight.crowding_of(host, link.report)
            for text in (*preflight.notices_of(host, link.report, link.reported), crowding):
                if text:
                    output.say(f"host {host.name}: {text}")
    for error in errors[1:]:
        output.say(error)
    if errors:
        raise HostfileError(errors[0])
    return wanted


class TooFewError(HostfileError):
    """The hosts that answer lack GPUs that a job waits for."""


def leave_out(
    wanted: Hostfile,
    links: Sequence[Link],
    ranks: int,
    output: Output,
    least: int | None = None,
    unit: int = 1,
) -> Hostfile:
    """Return the hosts that can be used, filled with up to `ranks` ranks, a multiple of `unit`.

    Raises:
        TooFewError: they have fewer than `least`.
        HostfileError: none can, or fewer than `unit`.
    """
    kept, told = [], []
    for host, link in zip(wanted.hosts, links, strict=True):
        found = preflight.left_of(host, link.report)
        error = preflight.error_of(found, link.report, link.error())
        if error:
            told.append(f"leaving out {error}")
            continue
        if found != host:
            lost, held = host.slots - found.slots, link.report.held if link.report else ""
            why = f"are left out: others use {held}" if held else "are gone, going on with the rest"
            told.append(f"host {host.name}: {lost} of {host.slots} GPUs {why}")
        kept.append(found)
    slots = sum(host.slots for host in kept)
    idle = min(ranks, slots) % unit
    size = min(ranks, slots) - idle
    if least is not None and size < least:
        raise TooFewError(f"{slots} GPUs can be used, of at least {least}: {'; '.join(told)}")
    for text in told:
        output.say(text)
    if not kept:
        raise HostfileError("no host is left to go on with: see above what each one said")
    if not size:
        raise HostfileError(f"{idle} GPUs are left, but the pinned degrees take {unit} together")
    if idle:
        output.say(f"GPUs that stay idle: {idle}, since the pinned degrees take {unit} together")
    return fill(replace(wanted, hosts=tuple(kept)), size)


def plan_starts(
    job: LaunchJob,
    hosts: Hostfile,
    links: Sequence[Link],
    reports: Sequence[HostReport],
    args: tuple[str, ...],
) -> tuple[list[HostCommand], str | None]:
    """Return what each host runs, and the address at which they meet (None on one machine)."""
    added = command.environment(job.env, reports[0].device) | links_told(hosts.hardware)
    address = None
    if len(links) > 1 or not network.is_here(links[0].name):
        address = job.address(hosts.hosts[0].name) or network.master_address(hosts.hosts)
    starts, first = [], 0
    meeting = command.rendezvous(address or "127.0.0.1", reports[0].port, hosts.slots)
    for node, (host, link) in enumerate(zip(hosts.hosts, links, strict=True)):
        sent = {} if network.is_here(link.name) else command.forwarded(job.env)
        place = {"LOCAL_SIZE": str(host.slots), "CROSS_RANK": str(node)}
        report = reports[node]
        seen = command.visible(
            report.device, report.gpus, restricted=report.restricted, chosen=report.held != ""
        )
        env = sent | added | meeting | place | seen
        starts.append(HostCommand((str(job.script), *args), env, first, host.slots))
        first += host.slots
    return starts, address


def describe(
    hosts: Hostfile,
    links: Sequence[Link],
    reports: Sequence[HostReport],
    starts: Sequence[HostCommand],
    output: Output,
) -> None:
    """Say what is about to run, and which variables go along."""
    kind = reports[0].device
    unfit = ", ".join(sorted({name for report in reports for name in report.unfit}))
    why = f"torch is not built for {unfit} graphics" if unfit else "no GPU was found"
    many = "" if hosts.slots == 1 else "s"
    noun = f"CPU rank{many} ({why})" if kind == "cpu" else f"{kind} GPU{many}"
    if len(links) == 1 and network.is_here(links[0].name):
        output.say(f"{hosts.slots} {noun} on this machine")
        return
    layout = ", ".join(f"{host.name} x {host.slots}" for host in hosts.hosts)
    over = "1 host" if len(links) == 1 else f"{len(links)} hosts"
    output.say(f"{hosts.slots} {noun} on {over}: {layout}")
    names = sorted({name for start in starts for name in start.env})
    output.say(f"variables given to the other hosts: {', '.join(names)}")


def close_all(links: Sequence[Link], patience: float = CLOSING) -> None:
    """End every agent, all at the same time; drop one that takes more than `patience` seconds."""
    silent = {link.name for link in links if link.closed}
    for link in links:
        link.closed = True
        link.send("end")
    deadline = time.monotonic() + patience
    for link in links:
        link.close(1.0 if link.name in silent else max(0.5, deadline - time.monotonic()))
