"""One start of the ranks on all hosts, watched from its first message to its last process."""

from __future__ import annotations

import queue
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.launch import progress, stacks, terminal, wire
from train.launch.link import Events, Link
from train.launch.outcome import Death, Outcome, first_death, is_hung
from train.launch.screen import Screen

_GATHER = 1.0  # seconds in which deaths of other ranks are waited for, to name the first rightly
_STACKS = 4.0  # seconds in which the ranks of a hanging run print their stacks
_CLOSING = 15.0  # seconds for all agents to end their ranks


@dataclass(frozen=True)
class Start:
    """What one host is to run."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


@dataclass
class Attempt:
    """The state of one start."""

    links: Sequence[Link]
    events: Events
    run_dir: Path
    screen: Screen
    signals: list[int]
    can_stop: bool
    began: float = field(default_factory=time.time)
    deaths: list[Death] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    idle: dict[str, float | None] = field(default_factory=dict)
    stopped: dict[str, bool] = field(default_factory=dict)
    stacks: list[tuple[int, str, str]] = field(default_factory=list)
    closing: float = float("inf")
    hung: bool = False
    cancelled: bool = False
    obeyed: int = 0

    def run(self, starts: Sequence[Start], master: str | None, cwd: Path) -> Outcome:
        """Start the ranks and return what became of them; none is left when this returns."""
        size = terminal.own_size()
        self.screen.expect_echo(False)
        for link, start in zip(self.links, starts, strict=True):
            shared = {"terminal": size, "cwd": str(cwd), "master": master}
            link.send("start", argv=start.argv, env=dict(start.env), **shared)
        try:
            self.follow()
        finally:
            close_all(self.links)
        self.drain()
        self.screen.release(0.0)
        done = (self.run_dir / "DONE").exists()
        codes = tuple(self.codes[link.name] for link in self.links if link.name in self.codes)
        return Outcome(codes, tuple(self.deaths), tuple(self.lost), self.hung, self.cancelled, done)

    def follow(self) -> None:
        """Serve the agents until all have ended, or the first trouble has been explained."""
        beaten = looked = time.monotonic()
        while len(self.codes) < len(self.links):
            self.take(0.1)
            self.heed_signals()
            if self.closing == float("inf"):
                self.screen.release()
            now = time.monotonic()
            if now - beaten >= wire.BEAT:
                beaten = now
                self.beat(now)
            if now - looked >= 2 * wire.BEAT:
                looked = now
                self.look_for_hang()
            if now >= self.closing or self.cancelled:
                self.explain()
                return

    def take(self, patience: float) -> None:
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

    def handle(self, link: Link, message: wire.Message | None) -> None:
        """Handle one message."""
        if message is None:
            if link.name not in self.codes and not link.closed:
                self.lose(link, link.trouble() or "the connection ended")
            return
        match message["kind"]:
            case "output":
                self.screen.hold(message["stream"], message["data"])
            case "beat":
                self.idle[link.name] = message["idle"]
                self.stopped[link.name] = "T" in message["ranks"].values()
            case "death":
                self.mourn(link, message)
            case "stack":
                self.stacks.append((message["rank"], message["state"], message["text"]))
            case "exit":
                self.codes[link.name] = message["code"]
                if message["code"]:
                    self.close_soon()

    def mourn(self, link: Link, message: Mapping[str, Any]) -> None:
        """Note a rank's end; a rank that has saved and stopped (75) drags nobody along."""
        when = message["time"] or time.time()
        death = Death(message["rank"], link.name, message["code"], when, message["tail"])
        self.deaths.append(death)
        if death.code != 75:
            self.close_soon()

    def close_soon(self) -> None:
        """Bring everything down shortly."""
        self.closing = min(self.closing, time.monotonic() + _GATHER)

    def lose(self, link: Link, why: str) -> None:
        """Note a host that is gone."""
        link.closed = True
        self.lost.append(link.name)
        self.screen.expect_echo(True)
        self.screen.say(f"host {link.name} is lost: {why}")
        self.close_soon()

    def beat(self, now: float) -> None:
        """Renew every agent's lease, and look for agents that have fallen silent."""
        for link in self.links:
            link.send("beat")
            if now - link.heard > wire.LEASE and not link.closed and link.name not in self.codes:
                self.lose(link, f"it has been silent for {now - link.heard:.0f} s")

    def heed_signals(self) -> None:
        """Stop after the current step at the first signal; end at once at a second Ctrl-C."""
        for number in self.signals[self.obeyed :]:
            self.obeyed += 1
            name = signal.Signals(number).name
            if self.can_stop and self.obeyed == 1 and self.run_dir.is_dir():
                (self.run_dir / "STOP").touch()
                self.screen.say(f"{name}: saving and stopping after this step; again: end at once")
            elif number != signal.SIGUSR1:
                self.screen.say(f"{name}: ending at once")
                self.cancelled = True

    def look_for_hang(self) -> None:
        """Find out whether all ranks stand still, and if so print where each one stands."""
        known = [idle for idle in self.idle.values() if idle is not None]
        seen = progress.steps(self.run_dir, self.began)
        since = time.time() - max(seen.written, self.began)
        saving, stopped = progress.saving(self.run_dir, self.began), any(self.stopped.values())
        idle = min(known, default=None)
        if self.hung or not is_hung(idle, since, seen.usual, saving, stopped):
            return
        self.hung = True
        self.screen.say(f"the run hangs: no step for {since:.0f} s, and no rank moves")
        for link in self.links:
            link.send("stacks")
        deadline = time.monotonic() + _STACKS
        while time.monotonic() < deadline:
            self.take(0.1)
        for line in stacks.summary(self.stacks):
            self.screen.say(line)
        self.close_soon()

    def explain(self) -> None:
        """Print the first failing rank's error, before all that it caused."""
        death = first_death(self.deaths)
        echo = death is not None and death.code == 1 and (self.lost or self.hung)
        if death is not None and death.code != 75 and not echo:
            tail = "" if death.rank == 0 else death.tail.strip()
            if death.rank != 0 or death.code not in (2, 3):
                below = ":" if tail else ""
                self.screen.say(f"rank {death.rank} on {death.host} {death.cause}{below}")
            if tail:
                self.screen.hold("err", "")
                self.screen.held.appendleft((0.0, "err", tail + "\n"))
        self.screen.release(0.0)


def close_all(links: Sequence[Link]) -> None:
    """End every agent, all at the same time."""
    silent = {link.name for link in links if link.closed}
    for link in links:
        link.closed = True
        link.send("end")
    deadline = time.monotonic() + _CLOSING
    for link in links:
        link.close(1.0 if link.name in silent else max(0.5, deadline - time.monotonic()))
