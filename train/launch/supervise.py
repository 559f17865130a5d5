"""From the first start of a job to its end, over the loss of ranks and hosts.

Every start connects to all hosts at the same time, compares what their agents found, and runs the
ranks under the agents. After a fault all is taken down, the hosts are asked again, those that do
not answer are left out, and the run goes on from its newest checkpoint with what is left.
"""

from __future__ import annotations

import queue
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from train.errors import HostfileError, OutOfMemoryError
from train.launch import command, network, preflight, progress, wire
from train.launch.attempt import Attempt, Start, close_all
from train.launch.devices import Devices
from train.launch.environment import forwarded
from train.launch.exhaustion import note
from train.launch.hostfile import Host, Hostfile, fill, render
from train.launch.link import ROOT, Events, Link, here, over_ssh
from train.launch.outcome import RESTARTS, Next, Outcome, decide, first_death
from train.launch.screen import Screen
from train.launch.sharing import shared_token

AGENT = "train.launch.agent"
_HELLO = 40.0  # seconds for an agent to report: ssh, a shell, Python from a cold disk
_PAUSE = 1.0  # seconds between an end and the next start

Reach = Callable[[str, str, Path], tuple[str, ...]]


@dataclass(frozen=True)
class Job:
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
    deepspeed: tuple[str, ...] = (sys.executable, "-P", "-m", "deepspeed.launcher.runner")
    script: Path = ROOT / "train" / "main.py"


def supervise(job: Job, signals: list[int]) -> int:
    """Run a job to its end and return its exit code.

    Raises:
        UserError: a host cannot be used as it is; nothing has been started then.
    """
    screen = Screen(None if job.dry_run else job.run_dir / "launch.log")
    (job.run_dir / "STOP").unlink(missing_ok=True)
    fruitless, best = 0, progress.newest_checkpoint(job.run_dir)
    first = True
    while True:
        outcome = start(job, screen, signals, first)
        first = False
        reached = progress.newest_checkpoint(job.run_dir)
        fruitless, best = (0, reached) if reached > best else (fruitless, best)
        following = decide(outcome, fruitless)
        if signals and following is Next.RESTART:
            return 75 if signal.SIGUSR1 in signals else outcome.code
        following = Next.END if job.dry_run else following
        if following is Next.GIVE_UP:
            screen.say(f"giving up: {RESTARTS} restarts brought no progress past step {best}")
        if following is not Next.RESTART:
            return outcome.code
        fruitless += 1
        learn(job, outcome, screen)
        where = f"step {best}" if best else "the beginning: there is no checkpoint yet"
        screen.say(f"starting again from {where} (restart {fruitless} of {RESTARTS})")
        time.sleep(_PAUSE)


def learn(job: Job, outcome: Outcome, screen: Screen) -> None:
    """After a start that ran out of memory, see to it that the next plan is a smaller one."""
    death = first_death(outcome.deaths)
    if outcome.code != OutOfMemoryError.exit_code or death is None:
        return
    predicted = note(job.run_dir, death.rank, death.host)
    size = "" if predicted is None else f", predicted at {predicted / 2**30:.2f} GiB a device,"
    screen.say(f"the plan{size} did not fit: the next one will be smaller")


def start(job: Job, screen: Screen, signals: list[int], first: bool) -> Outcome:
    """Connect to the hosts and run the ranks once.

    Raises:
        UserError: at the first start, a host that does not answer or does not match the others.
    """
    events: Events = queue.Queue()
    wanted = fill(job.hostfile, job.ranks) if first else job.hostfile
    links: list[Link] = []
    try:
        for host in wanted.hosts:
            links.append(connect(job, host, events))
        with nullcontext() if job.dry_run else shared_token(job.run_dir) as token:
            hear(links, events, signals, token)
        if signals:  # a preempted job is queued again though it has nothing to save yet
            preempted = signal.SIGUSR1 in signals
            return Outcome((75,)) if preempted else Outcome(cancelled=True)
        hosts = usable(job, wanted, links, screen, first)
        chosen = [link for link in links if link.name in {host.name for host in hosts.hosts}]
        close_all([link for link in links if link not in chosen])
        for remark in preflight.differences([link.hello or {} for link in chosen]):
            raise HostfileError(remark)
        starts, master = plan_starts(job, hosts, chosen, first)
        describe(hosts, chosen, starts, screen)
        attempt = Attempt(chosen, events, job.run_dir, screen, signals, not job.dry_run)
        outcome = attempt.run(starts, master, job.cwd)
        if job.dry_run:
            return replace(outcome, done=True)
        if outcome.codes and outcome.code == 1 and not (any(outcome.codes) or outcome.deaths):
            screen.say(f"the ranks ended without finishing: {job.run_dir / 'DONE'} is missing")
        return outcome
    finally:
        close_all([link for link in links if not link.closed])


def connect(job: Job, host: Host, events: Events) -> Link:
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


def hear(links: Sequence[Link], events: Events, signals: Sequence[int], token: Path | None) -> None:
    """Wait until every agent has reported, and looked for the token, or is known not to."""
    deadline = time.monotonic() + _HELLO
    waiting, beaten = set(links), 0.0
    while waiting and not signals and time.monotonic() < deadline:
        if time.monotonic() - beaten >= wire.BEAT:
            beaten = time.monotonic()  # the quick ones must not take us for lost meanwhile
            for link in links:
                link.send("beat")
        try:
            link, message = events.get(timeout=0.1)
        except queue.Empty:
            continue
        kind = message["kind"] if message else ""
        if message is None:  # an agent that had reported may end as well
            link.hello = None
        if message and kind == "hello":
            link.hello = {**message, "heard": time.time()}
            if token is not None:
                link.send("look", path=str(token))
                continue
        elif message and link.hello and kind == "seen":
            link.hello["shared"] = message["seen"]
        if kind in ("", "hello", "seen"):
            waiting.discard(link)


def usable(
    job: Job, wanted: Hostfile, links: Sequence[Link], screen: Screen, first: bool
) -> Hostfile:
    """Return the hosts to run on: all that were wanted, or after a fault those that are left.

    Raises:
        HostfileError: at the first start, a host that cannot be used; later, when none is left.
    """
    kept, faults = [], []
    for host, link in zip(wanted.hosts, links, strict=True):
        fault = preflight.fault(host, link.hello, link.trouble())
        if fault:
            faults.append(fault)
            continue
        kept.append(host)
        facts = link.hello or {}
        for text in preflight.limits(host, facts, facts["heard"]) if first else ():
            screen.say(f"host {host.name}: {text}")
    for fault in faults[1:] if first else faults:
        screen.say(fault if first else f"leaving out {fault}")
    if faults and first:
        raise HostfileError(faults[0])
    if not kept:
        raise HostfileError("no host is left to go on with: see above what each one said")
    left = replace(wanted, hosts=tuple(kept))
    return fill(left, min(job.ranks, left.slots))


def plan_starts(
    job: Job, hosts: Hostfile, links: Sequence[Link], first: bool
) -> tuple[list[Start], str | None]:
    """Return what each host runs, and the address at which they meet (None on one machine)."""
    facts = [link.hello or {} for link in links]
    kind = str(facts[0]["device"])
    added = command.environment(job.env, kind)
    args = job.args if first or job.dry_run else (*job.args, "--resume", "auto")
    if len(links) == 1 and network.is_here(links[0].name):
        found = Devices(kind, tuple(facts[0]["gpus"]), facts[0]["restricted"])
        argv = command.local(job.deepspeed, hosts.slots, found, facts[0]["port"], job.script, args)
        return [Start(argv, added)], None
    address = job.address(hosts.hosts[0].name) or network.master_address(hosts.hosts)
    path = job.run_dir / "hostfile"
    # Numbers are named only where CUDA_VISIBLE_DEVICES hides some: DeepSpeed would set it anew. The
    # other variables that hide devices stay as they are, and the runtime counts what they leave.
    visible = [
        (
            host.name.rpartition("@")[2],
            (fact["gpus"] if fact["restricted"] else range(host.slots))[: host.slots],
        )
        for host, fact in zip(hosts.hosts, facts, strict=True)
    ]
    most = [Host(name, 1 + max(ids)) for name, ids in visible]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(replace(hosts, hosts=tuple(most))))
    where, meeting = command.include(visible), (address, int(facts[0]["port"]))
    starts = []
    for node, link in enumerate(links):
        env = added if network.is_here(link.name) else forwarded(job.env) | added
        argv = command.one_of_many(job.deepspeed, node, path, where, meeting, job.script, args)
        starts.append(Start(argv, env))
    return starts, address


def describe(
    hosts: Hostfile, links: Sequence[Link], starts: Sequence[Start], screen: Screen
) -> None:
    """Say what is about to run, and which variables go along."""
    kind = str((links[0].hello or {})["device"])
    noun = "CPU ranks (no GPU was found)" if kind == "cpu" else f"{kind} GPUs"
    if len(links) == 1 and network.is_here(links[0].name):
        screen.say(f"{hosts.slots} {noun} on this machine")
        return
    layout = ", ".join(f"{host.name} x {host.slots}" for host in hosts.hosts)
    screen.say(f"{hosts.slots} {noun} on {len(links)} hosts: {layout}")
    names = sorted({name for start in starts for name in start.env})
    screen.say(f"variables given to the other hosts: {', '.join(names)}")
