"""From the first start of a job to its end, over the loss of ranks and hosts.

Every start connects to all hosts at the same time, compares what their agents found, and runs the
ranks under the agents. After a fault all is taken down, the hosts are asked again, those that do
not answer are left out, and the run goes on from its newest checkpoint with what is left.
"""

from __future__ import annotations

import queue
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from train.errors import ExitCode, HostfileError
from train.hosts import network, slurm
from train.hosts.hostfile import Host, Hostfile, fill
from train.hosts.probe import HostReport
from train.hosts.remote import here, over_srun, over_ssh
from train.hosts.shared_folder import shared_token
from train.launch import command, preflight, progress, protocol
from train.launch.attempt import Attempt, HostCommand, close_all
from train.launch.link import Events, Link
from train.launch.oom import note
from train.launch.outcome import RESTARTS, Next, Outcome, decide, first_death
from train.launch.output import Output
from train.launch.owner import disown_empty, own
from train.launch.pause import AwakeClock, beating, told_pauses
from train.paths import SCRIPT
from train.text import GIB

AGENT = "train.launch.agent"
_HELLO = 40.0  # seconds for an agent to report: ssh, a shell, Python from a cold disk
_PAUSE = 1.0  # seconds between an end and the next start

Reach = Callable[[str, str, Path], tuple[str, ...]]
Select = Callable[[Hostfile, Sequence[Link]], Hostfile]


@dataclass(frozen=True)
class LaunchJob:
    """A run: which hosts it may use, how many ranks it wants, and what every rank is told."""

    hostfile: Hostfile
    ranks: int
    args: tuple[str, ...]
    run_dir: Path
    dry_run: bool
    env: Mapping[str, str]
    cwd: Path
    reach: Reach = over_ssh
    address: Callable[[str], str | None] = lambda name: None
    script: Path = SCRIPT
    lease: float = protocol.LEASE


def by_srun(job: LaunchJob) -> LaunchJob:
    """Return the job with its agents started through srun instead of ssh."""
    return replace(job, env=slurm.step_environment(job.env), reach=over_srun, address=slurm.address)


def supervise(job: LaunchJob, signals: list[int]) -> int:
    """Run a job to its end and return its exit code.

    Raises:
        UserError: a host cannot be used as it is, or the run folder is in use; nothing has been
            started then.
    """
    output = Output(None if job.dry_run else job.run_dir / "launch.log")
    if job.dry_run:
        return follow(job, output, signals)
    own(job.run_dir, output.say)
    stop = job.run_dir / "STOP"
    stop.unlink(missing_ok=True)  # of an earlier start
    try:
        return follow(job, output, signals)
    finally:
        stop.unlink(missing_ok=True)
        disown_empty(job.run_dir)


def follow(job: LaunchJob, output: Output, signals: list[int]) -> int:
    """Run a job to its end, start after start, and return its exit code.

    Raises:
        UserError: a host cannot be used as it is; nothing has been started then.
    """
    without_progress, best = 0, progress.newest_checkpoint(job.run_dir)
    place: tuple[str, int] | None = None
    begin = first_start
    while True:
        outcome = begin(job, output, signals)
        begin = restart
        reached = progress.newest_checkpoint(job.run_dir)
        if reached > best:
            without_progress, best = 0, reached
        before, place = place, (outcome.error, progress.steps(job.run_dir, 0.0).last)
        repeats = outcome.error != "" and place == before
        following = decide(outcome, without_progress, repeats=repeats)
        if signals and following is Next.RESTART:
            return ExitCode.STOPPED if signal.SIGUSR1 in signals else outcome.code
        if (job.run_dir / "STOP").exists() and following is Next.RESTART:
            output.say(f"STOP: not started again; step {reached} is saved")
            return ExitCode.STOPPED
        following = Next.END if job.dry_run else following
        if following is Next.GIVE_UP:
            why = f"{RESTARTS} restarts brought no progress past step {best}"
            if repeats:
                why = f"after step {place[1]} the same error came twice: {place[0]}"
            output.say(f"giving up: {why}")
        if following is not Next.RESTART:
            return outcome.code
        without_progress += 1
        lower_memory_cap(job, outcome, output)
        where = f"step {best}" if best else "the beginning: there is no checkpoint yet"
        output.say(f"starting again from {where} (restart {without_progress} of {RESTARTS})")
        time.sleep(_PAUSE)


def lower_memory_cap(job: LaunchJob, outcome: Outcome, output: Output) -> None:
    """After a start that ran out of memory, see to it that the next plan is a smaller one."""
    death = first_death(outcome.deaths)
    if outcome.code != ExitCode.OUT_OF_MEMORY or death is None:
        return
    predicted = note(job.run_dir, death.rank, death.host)
    size = "" if predicted is None else f", predicted at {predicted / GIB:.2f} GiB a device,"
    output.say(f"the plan{size} did not fit: the next one will be smaller")


def first_start(job: LaunchJob, output: Output, signals: list[int]) -> Outcome:
    """Run the ranks on the hosts that were asked for, all of them.

    Raises:
        UserError: a host does not answer, or does not match the others.
    """
    wanted = fill(job.hostfile, job.ranks)
    return start(job, wanted, partial(require_all, output=output), job.args, output, signals)


def restart(job: LaunchJob, output: Output, signals: list[int]) -> Outcome:
    """Run the ranks again on what is left of the job's hosts, from the newest checkpoint.

    Raises:
        HostfileError: no host is left.
    """
    args = job.args if job.dry_run else (*job.args, "--resume", "auto")
    left = partial(leave_out, ranks=job.ranks, output=output)
    return start(job, job.hostfile, left, args, output, signals)


def start(
    job: LaunchJob,
    wanted: Hostfile,
    select: Select,
    args: tuple[str, ...],
    output: Output,
    signals: list[int],
) -> Outcome:
    """Connect to the wanted hosts and run the ranks once, on those that `select` returns.

    Raises:
        UserError: a host cannot be used, as `select` decides, or does not match the others.
    """
    events: Events = queue.Queue()
    with connected(job, wanted.hosts, events) as links:
        with nullcontext() if job.dry_run else shared_token(job.run_dir) as token:
            await_reports(links, events, signals, token)
        if signals:
            name = signal.Signals(signals[0]).name
            output.say(f"{name}: stopped before the ranks had begun: nothing was lost")
            close_all(links, patience=1.0)  # they have no ranks, and may be looking at a folder
            return Outcome(ended=ExitCode.STOPPED)
        hosts = select(wanted, links)
        names = {host.name for host in hosts.hosts}
        chosen = tuple(link for link in links if link.name in names)
        close_all([link for link in links if link not in chosen])
        reports = tuple(link.report for link in chosen if link.report is not None)
        for error in preflight.differences(reports):
            raise HostfileError(error)
        starts, master = plan_starts(job, hosts, chosen, reports, args)
        describe(hosts, chosen, reports, starts, output)
        attempt = Attempt(chosen, events, job.run_dir, output, signals, job.lease)
        outcome = attempt.run(starts, master, job.cwd)
        if job.dry_run:
            return replace(outcome, done=True)
        if outcome.codes and outcome.code == 1 and not (any(outcome.codes) or outcome.deaths):
            output.say(f"the ranks ended without finishing: {job.run_dir / 'DONE'} is missing")
        return outcome


@contextmanager
def connected(job: LaunchJob, hosts: Sequence[Host], events: Events) -> Iterator[list[Link]]:
    """Start the agents of all hosts, and keep up their leases; none is left afterwards.

    Raises:
        HostfileError: there is no ssh, or no srun, on this machine.
    """
    links: list[Link] = []
    try:
        for host in hosts:
            links.append(connect(job, host, events))
        with beating(links), told_pauses():
            yield links
    finally:
        close_all([link for link in links if not link.closed])


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


def await_reports(
    links: Sequence[Link], events: Events, signals: Sequence[int], token: Path | None
) -> None:
    """Wait until every agent has reported, and looked for the token, or is known not to."""
    clock, waiting = AwakeClock(), set(links)
    while waiting and not signals and clock() < _HELLO:
        try:
            link, message = events.get(timeout=0.1)
        except queue.Empty:
            continue
        kind = message["kind"] if message else ""
        if message is None:  # an agent that had reported may end as well
            link.report = None
        elif kind == "hello":
            link.report, link.reported = HostReport.from_json(message["report"]), time.time()
            if token is not None:
                link.send("look", path=str(token))
                continue
        elif kind == "seen" and link.report is not None:
            link.report = replace(link.report, shared=bool(message["seen"]))
        if kind in ("", "hello", "seen"):
            waiting.discard(link)


def require_all(wanted: Hostfile, links: Sequence[Link], output: Output) -> Hostfile:
    """Return the hosts that were wanted, having said what each may fail of later.

    Raises:
        HostfileError: one of them cannot be used; what the others lack is said before.
    """
    errors = []
    for host, link in zip(wanted.hosts, links, strict=True):
        error = preflight.error_of(host, link.report, link.error())
        if error:
            errors.append(error)
        elif link.report is not None:
            for text in preflight.notices_of(host, link.report, link.reported):
                output.say(f"host {host.name}: {text}")
    for error in errors[1:]:
        output.say(error)
    if errors:
        raise HostfileError(errors[0])
    return wanted


def leave_out(wanted: Hostfile, links: Sequence[Link], ranks: int, output: Output) -> Hostfile:
    """Return the hosts that can still be used, filled with up to `ranks` ranks.

    Raises:
        HostfileError: none can.
    """
    kept = []
    for host, link in zip(wanted.hosts, links, strict=True):
        found = preflight.left_of(host, link.report)
        error = preflight.error_of(found, link.report, link.error())
        if error:
            output.say(f"leaving out {error}")
            continue
        if found != host:
            lost = host.slots - found.slots
            output.say(
                f"host {host.name}: {lost} of {host.slots} GPUs are gone, going on with the rest"
            )
        kept.append(found)
    if not kept:
        raise HostfileError("no host is left to go on with: see above what each one said")
    left = replace(wanted, hosts=tuple(kept))
    return fill(left, min(ranks, left.slots))


def plan_starts(
    job: LaunchJob,
    hosts: Hostfile,
    links: Sequence[Link],
    reports: Sequence[HostReport],
    args: tuple[str, ...],
) -> tuple[list[HostCommand], str | None]:
    """Return what each host runs, and the address at which they meet (None on one machine)."""
    added = command.environment(job.env, reports[0].device)
    address = None
    if len(links) > 1 or not network.is_here(links[0].name):
        address = job.address(hosts.hosts[0].name) or network.master_address(hosts.hosts)
    starts, first = [], 0
    meeting = command.rendezvous(address or "127.0.0.1", reports[0].port, hosts.slots)
    for node, (host, link) in enumerate(zip(hosts.hosts, links, strict=True)):
        sent = {} if network.is_here(link.name) else command.forwarded(job.env)
        place = {"LOCAL_SIZE": str(host.slots), "CROSS_RANK": str(node)}
        report = reports[node]
        seen = command.visible(report.device, report.gpus, restricted=report.restricted)
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
    noun = f"CPU ranks ({why})" if kind == "cpu" else f"{kind} GPUs"
    if len(links) == 1 and network.is_here(links[0].name):
        output.say(f"{hosts.slots} {noun} on this machine")
        return
    layout = ", ".join(f"{host.name} x {host.slots}" for host in hosts.hosts)
    output.say(f"{hosts.slots} {noun} on {len(links)} hosts: {layout}")
    names = sorted({name for start in starts for name in start.env})
    output.say(f"variables given to the other hosts: {', '.join(names)}")
