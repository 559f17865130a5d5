"""`python -m train.launch.agent`: starts and watches the ranks of one host.

It holds a lease: a supervisor that is gone, or silent for `protocol.LEASE` seconds during which
this process ran, ends every rank of this host. The ranks live in a process group of their own; what
leaves the group is still found, because this process adopts its orphans. So nothing outlives the
agent, and nobody else's process is ever signalled.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from train.errors import ExitCode
from train.hosts import process
from train.hosts.memory import oom_kills
from train.hosts.probe import interface_variables, look
from train.hosts.shared_folder import sees
from train.launch import heartbeat, protocol, terminal
from train.launch.pause import AwakeClock

_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_PATIENCE = 5.0  # seconds that the other ranks get to end by themselves after one has failed
_PREFIX = "anyrank-agent-"
_FRESH = 60.0  # seconds in which a folder may still be without its lock
_TAIL = 12_000  # bytes of a failed rank's output
_LONGEST_OUTBOX = 1 << 22  # bytes that wait for a slow connection before the ranks must wait, too


class Agent:
    """One host's ranks, from the first message to the last process."""

    def __init__(self, source: int, sink: int) -> None:
        self.source, self.sink = source, sink
        remove_stale(Path(tempfile.gettempdir()))
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self.lease = (self.folder / "lease").open("w")
        fcntl.flock(self.lease, fcntl.LOCK_EX)
        self.lines = protocol.Lines()
        self.children: list[subprocess.Popen[bytes]] = []
        self.selector = selectors.DefaultSelector()
        self.dead: set[str] = set()
        self.asked = 0  # the signal that asks the ranks to stop, once there is one
        self.told: set[str] = set()
        self.entered = 0
        self.kills = oom_kills()
        self.clock, self.patience = AwakeClock(), protocol.LEASE
        self.heard = self.beaten = self.clock()
        self.deadline = float("inf")
        self.over = False
        self.outbox = b""
        os.set_blocking(sink, False)  # a cut connection must not stop the clock of the lease

    def run(self) -> int:
        """Serve until the ranks have ended or the supervisor has gone; leave nothing behind."""
        self.selector.register(self.source, selectors.EVENT_READ, "message")
        try:
            self.outbox = b"\n"  # ends what a shell's start-up files may have printed
            self.say("hello", report=asdict(look(os.environ)))
            while not self.over:
                for key, _ in self.selector.select(0.1):
                    if key.data == "message" or len(self.outbox) < _LONGEST_OUTBOX:
                        self.read(key.fd, key.data)
                self.watch()
        finally:
            self.end()
            shutil.rmtree(self.folder, ignore_errors=True)
        return 0

    def say(self, kind: str, **content: Any) -> None:
        """Send one message, or as much of it as the connection takes for now."""
        self.outbox += protocol.encode(kind, **content)
        self.post()

    def post(self) -> None:
        """Send what waits; a supervisor that does not listen any more has gone."""
        try:
            while self.outbox:
                self.outbox = self.outbox[os.write(self.sink, self.outbox) :]
        except BlockingIOError:
            return
        except OSError:
            self.outbox, self.over = b"", True

    def read(self, source: int, name: str) -> None:
        """Take what a descriptor has: messages, or output of the ranks."""
        try:
            chunk = os.read(source, 1 << 16)
        except OSError:  # a terminal whose other side has closed
            chunk = b""
        if name != "message":
            if chunk:
                self.say("output", stream=name, data=chunk.decode(errors="surrogateescape"))
            else:
                self.selector.unregister(source)
            return
        if not chunk:
            self.over = True
        for message in self.lines.feed(chunk):
            self.heard = self.clock()
            self.dispatch(message)

    def dispatch(self, message: protocol.Message) -> None:
        """Do what one message asks for."""
        match message["kind"]:
            case "look":
                self.say("seen", seen=sees(Path(message["path"])))
            case "start":
                self.start(message)
            case "go":
                heartbeat.write(self.folder / heartbeat.GO, message["marks"])
            case "signal":
                self.asked = message["number"]
            case "stacks":
                self.stacks()
            case "end":
                self.over = True

    def start(self, message: protocol.Message) -> None:
        """Start the ranks of this host, all in one process group.

        DeepSpeed's own launcher would do the same after importing torch twice, 3 s a start.
        """
        env = os.environ | message["env"]
        env[heartbeat.FOLDER] = str(self.folder)
        self.patience = message["lease"]
        if message["master"]:
            env |= interface_variables(env, message["master"])
        streams = terminal.streams(message["terminal"])
        for local in range(message["ranks"]):
            numbers = {"RANK": str(message["first"] + local), "LOCAL_RANK": str(local)}
            rank = subprocess.Popen(
                [sys.executable, "-u", *message["argv"]],
                env=env | numbers,
                cwd=message["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=streams.inner_out,
                stderr=streams.inner_err,
                process_group=self.children[0].pid if self.children else 0,
                preexec_fn=process.die_with_parent,
            )
            self.children.append(rank)
        streams.close_inner()
        for name, source in streams.outer:
            self.selector.register(source, selectors.EVENT_READ, name)

    def watch(self) -> None:
        """Look at the ranks and at the clock."""
        now = self.clock()
        if now - self.heard > self.patience:
            print("[agent] the supervisor is silent: ending the ranks", file=sys.stderr)
            self.over = True
        ranks = self.ranks()
        due = now - self.beaten >= protocol.BEAT and not self.outbox
        if due or len(ranks) > self.entered:
            self.beaten, self.entered = now, len(ranks)
            self.post()
            waiting = len(list(self.folder.glob("*.waiting")))
            self.say("beat", idle=self.idle(), ranks=self.states(), waiting=waiting)
        if not self.children:
            return
        for name, pid in ranks.items():
            if name not in self.dead and heartbeat.started(pid) is None:
                self.record_death(name, pid)
            elif self.asked and name not in self.told:  # also one that enters only now
                self.told.add(name)
                with suppress(ProcessLookupError):
                    os.kill(pid, self.asked)
        codes = [child.poll() for child in self.children]
        if any(codes):
            self.deadline = min(self.deadline, now + _PATIENCE)
        if None not in codes or now > self.deadline:
            self.finish()

    def record_death(self, name: str, pid: int) -> None:
        """Report a rank that has ended, unless all is well with it."""
        self.dead.add(name)
        record = _json(self.folder / f"{name}.exit")
        code = record.get("code")
        if not record and oom_kills() > self.kills:
            code = ExitCode.OUT_OF_MEMORY
        if code == 0:
            return
        self.deadline = min(self.deadline, self.clock() + _PATIENCE)
        tail = _tail(self.folder / f"{name}.log")
        told = {"time": record.get("time"), "error": record.get("error", "")}
        self.say("death", rank=int(name), code=code, pid=pid, tail=tail, **told)

    def finish(self) -> None:
        """Report the ranks' end after all that they printed: the code of one that failed, or 0."""
        failed = [child.returncode for child in self.children if child.returncode]
        process.signal_group(self.children[0].pid, signal.SIGKILL)
        for child in self.children:
            child.wait()
        code = failed[0] if failed else 0
        quiet = time.monotonic() + 0.5
        while len(self.selector.get_map()) > 1 and time.monotonic() < quiet:
            for key, _ in self.selector.select(0.1):
                self.read(key.fd, key.data)
        self.say("exit", code=code if code >= 0 else 128 - code)
        os.set_blocking(self.sink, True)
        self.post()
        self.over = True

    def ranks(self) -> dict[str, int]:
        """Return the process id of every rank that has entered."""
        found = {path.stem: _json(path).get("pid") for path in self.folder.glob("*.pid")}
        return {name: pid for name, pid in found.items() if isinstance(pid, int)}

    def idle(self) -> float | None:
        """Return for how many seconds no rank of this host has moved; None before any entered."""
        ages = [time.time() - path.stat().st_mtime for path in self.folder.glob("*.pulse")]
        return min(ages, default=None)

    def states(self) -> dict[str, str]:
        """Return the kernel's letter for every rank: T has been stopped."""
        return {name: heartbeat.state(pid) for name, pid in self.ranks().items()}

    def stacks(self) -> None:
        """Ask every rank for its Python stack and send what comes."""
        for pid in self.ranks().values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR2)
        time.sleep(1.0)
        for name, pid in sorted(self.ranks().items()):
            text = _tail(self.folder / f"{name}.stack")
            self.say("stack", rank=int(name), state=heartbeat.state(pid), text=text)

    def end(self) -> None:
        """Kill what is left: the group, then every process that descends from this one."""
        if not self.children:
            return
        process.signal_group(self.children[0].pid, signal.SIGKILL)
        for child in self.children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(10)
        for pid in process.descendants(os.getpid()):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def remove_stale(folder: Path) -> None:
    """Remove what killed agents of this user left: a folder whose lease nobody holds."""
    for path in folder.glob(f"{_PREFIX}*/lease"):
        with suppress(OSError):
            if path.stat().st_uid != os.getuid() or time.time() - path.stat().st_mtime < _FRESH:
                continue
            with path.open() as lease:
                fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.parent, ignore_errors=True)


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _tail(path: Path) -> str:
    try:
        return path.read_bytes()[-_TAIL:].decode(errors="replace")
    except OSError:
        return ""


def _stay(_number: int, _frame: FrameType | None) -> None:
    """Leave a signal to the supervisor; a handler, unlike SIG_IGN, is not inherited by ranks."""


def main(_argv: Sequence[str] = ()) -> int:
    """Serve the supervisor at the other end of stdin and stdout."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE):
        signal.signal(number, _stay)
    return Agent(0, 1).run()


if __name__ == "__main__":
    sys.exit(main())
