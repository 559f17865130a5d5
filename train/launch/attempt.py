"""One start of the ranks on all hosts, watched from its first message to its last process."""

from __future__ import annotations

import queue
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from train.errors import ExitCode
from train.launch import hang, progress, protocol
from train.launch.gather import Crew, close_all
from train.launch.job import LaunchJob
from train.launch.link import Link
from train.launch.outcome import Death, Outcome, first_death
from train.launch.output import Output
from train.launch.pause import AwakeClock

_ECHO = 1.0  # seconds in which deaths of other ranks are waited for, to name the first rightly
_STACKS = 4.0  # seconds in which the ranks of a hanging run print their stacks


@dataclass
class Observed:
    """What the supervisor has seen of one start so far."""

    deaths: list[Death] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    idle: dict[str, float | None] = field(default_factory=dict)
    stopped: dict[str, bool] = field(default_factory=dict)
    stacks: list[tuple[int, str, str]] = field(default_factory=list)
    hung: bool = False
    ended: ExitCode | None = None
    ended_at: float = 0.0

    def outcome(self, hosts: Sequence[str], *, done: bool, finished: bool) -> Outcome:
        """Return what became of the start; `hosts` in their order."""
        codes = tuple(self.codes[name] for name in hosts if name in self.codes)
        deaths, lost = tuple(self.deaths), tuple(self.lost)
        ended = self.ended
        return Outcome(codes, deaths, lost, self.hung, ended, done, self.ended_at, finished)


class Attempt:
    """One start: its agents are served until all have ended, or the first error is explained.

    `signals` grows whenever this process is asked to stop; the first one goes to the ranks, which
    stop as soon as all is saved. So they do once `attend`, which is asked all the time, says so.
    """

    def __init__(
        self,
        crew: Crew,
        job: LaunchJob,
        output: Output,
        signals: Sequence[int],
        attend: Callable[[], bool],
    ) -> None:
        links = crew.links
        self.links, self.events, self.run_dir, self.output = links, crew.events, job.run_dir, output
        self.signals, self.lease, self.attend = signals, job.lease, attend
        self.attended = False
        self.clock = AwakeClock()
        self.heard = {link.name: self.clock() for link in links}
        self.began = time.time()
        self.seen = Observed()
        self.closing = float("inf")  # when all is brought down, by `clock`
        self.handled = 0  # of the signals

    def run(self, marks: Mapping[str, float]) -> Outcome:
        """Let the ranks go and return what became of them; none is left when this returns.

        Args:
            marks: what is to be told of the pause before, as seconds since the epoch.
        """
        self.output.expect_echo(echoes=False)
        for link in self.links:
            link.send("go", marks=dict(marks))
        try:
            self.follow()
        finally:
            close_all(self.links)
        self.drain()
        self.output.release(0.0)
        return self.result()

    def result(self) -> Outcome:
        """Return what has become of the ranks so far."""
        done = (self.run_dir / "DONE").exists()
        hosts = [link.name for link in self.links]
        return self.seen.outcome(hosts, done=done, finished=self.finished())

    def finished(self) -> bool:
        """Whether DONE is there, and newer than this start."""
        try:
            return (self.run_dir / "DONE").stat().st_mtime >= self.began
        except OSError:
            return False

    def follow(self) -> None:
        """Serve the agents until all have ended, or the first error has been explained."""
        looked = self.clock()
        while len(self.seen.codes) < len(self.links):
            self.poll(0.1)
            self.heed_signals()
            if not self.attended and self.attend():
                self.attended = True
                for link in self.links:
                    link.send("signal", number=signal.SIGUSR1)
            if self.closing == float("inf"):
                self.output.release()
            now = self.clock()
            self.look_for_silence(now)  # before the deaths that it causes elsewhere end the start
            if now - looked >= 2 * protocol.BEAT:
                looked = now
                self.look_for_hang()
            if now >= self.closing or self.seen.ended is not None:
                break
        self.explain()

    def poll(self, patience: float) -> None:
        """Handle what the agents have said, waiting at most `patience` seconds for it."""
        try:
            link, message = self.events.get(timeout=patience)
        except queue.Empty:
            return
        self.handle(link, message)
        self.drain()

    def drain(self) -> None:
        """Handle all that has come so far."""
        while not self.events.empty():
            self.handle(*self.events.get())

    def handle(self, link: Link, message: protocol.Message | None) -> None:
        """Handle one message."""
        self.heard[link.name] = self.clock()
        if message is None:
            if link.name not in self.seen.codes and not link.closed:
                self.host_lost(link, link.error() or "the connection ended")
            return
        match message["kind"]:
            case "output":
                self.output.hold(message["stream"], message["data"])
            case "beat":
                self.seen.idle[link.name] = message["idle"]
                self.seen.stopped[link.name] = "T" in message["ranks"].values()
            case "death":
                self.record_death(link, message)
            case "stack":
                self.seen.stacks.append((message["rank"], message["state"], message["text"]))
            case "exit":
                self.seen.ended_at = self.seen.ended_at or time.time()
                self.seen.codes[link.name] = message["code"]
                if message["code"]:
                    self.close_soon()

    def record_death(self, link: Link, message: Mapping[str, Any]) -> None:
        """Note a rank's end; one that has saved and stopped is no reason to end the others."""
        when = message["time"] or time.time()
        self.seen.ended_at = self.seen.ended_at or when
        said = message["tail"], message["error"]
        death = Death(message["rank"], link.name, message["code"], when, *said)
        self.seen.deaths.append(death)
        if death.code != ExitCode.STOPPED:
            self.close_soon()

    def close_soon(self) -> None:
        """Bring everything down shortly."""
        self.closing = min(self.closing, self.clock() + _ECHO)

    def host_lost(self, link: Link, why: str) -> None:
        """Note a host that is gone."""
        link.closed = True
        self.seen.lost.append(link.name)
        self.seen.ended_at = self.seen.ended_at or time.time()
        self.output.expect_echo(echoes=True)
        self.output.say(f"host {link.name} is lost: {why}")
        self.close_soon()

    def look_for_silence(self, now: float) -> None:
        """Look for agents that have said nothing for the length of a lease."""
        for link in self.links:
            silence = now - self.heard[link.name]
            if silence > self.lease and not link.closed and link.name not in self.seen.codes:
                self.host_lost(link, f"it has been silent for {silence:.0f} s")

    def heed_signals(self) -> None:
        """Have the ranks save and stop at the first signal; end at once at a second Ctrl-C."""
        for number in self.signals[self.handled :]:
            self.handled += 1
            name = signal.Signals(number).name
            if self.handled == 1 and any(idle is not None for idle in self.seen.idle.values()):
                self.output.say(f"{name}: saving and stopping after this step; again: end at once")
                for link in self.links:
                    link.send("signal", number=number)
            elif self.handled == 1:
                self.output.say(f"{name}: stopped before the ranks had begun: nothing was lost")
                self.seen.ended = ExitCode.STOPPED
            elif number != signal.SIGUSR1:
                self.output.say(f"{name}: ending at once")
                self.seen.ended = ExitCode.INTERRUPTED

    def look_for_hang(self) -> None:
        """Find out whether all ranks stand still, and if so print where each one stands."""
        known = [idle for idle in self.seen.idle.values() if idle is not None]
        seen = progress.steps(self.run_dir, self.began)
        since = time.time() - max(seen.written, self.began, self.clock.woke)
        saving, stopped = progress.saving(self.run_dir, self.began), any(self.seen.stopped.values())
        idle = min(known, default=None)
        if self.seen.hung or not hang.is_hung(
            idle, since, seen.usual, saving=saving, stopped=stopped
        ):
            return
        self.seen.hung = True
        self.output.say(f"the run hangs: no step for {since:.0f} s, and no rank moves")
        for link in self.links:
            link.send("stacks")
        deadline = time.monotonic() + _STACKS
        while time.monotonic() < deadline:
            self.poll(0.1)
        for line in hang.summary(self.seen.stacks):
            self.output.say(line)
        self.close_soon()

    def explain(self) -> None:
        """Print the first failing rank's error, before all that it caused."""
        if self.result().code == ExitCode.DONE:
            return
        death = first_death(self.seen.deaths)
        plain = death is not None and death.code == ExitCode.FAULT
        echo = plain and (self.seen.lost or self.seen.hung)
        if death is not None and death.code != ExitCode.STOPPED and not echo:
            tail = "" if death.rank == 0 else death.tail.strip()
            if death.rank != 0 or death.code not in (ExitCode.USER, ExitCode.NON_FINITE):
                below = ":" if tail else ""
                self.output.say(f"rank {death.rank} on {death.host} {death.cause}{below}")
            if tail:
                self.output.hold_first("err", tail + "\n")
        self.output.release(0.0)
