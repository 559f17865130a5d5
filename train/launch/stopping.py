"""Requests to stop, by a signal or by the file STOP: noticed at any moment, done at a good one.

While nothing would be lost (tokenizing, loading, after the last save) a request ends the process at
once. While training it waits for the end of the step, where all ranks agree on it and save.

The end of the launcher is such a request, too: `kill` of the bare `deepspeed` command, and a signal
to its whole process group, end that at once, and nobody is left to wait for the ranks.

Python runs a signal's handler only between two instructions of the main thread, which may be
waiting in a collective for a rank that has gone; so a thread learns of signals through a pipe.
"""

from __future__ import annotations

import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from train.config import World
from train.errors import ExitCode, StopRequested
from train.hosts import process
from train.launch import heartbeat

_SAVING = 30.0  # seconds for ranks without a launcher; DeepSpeed's own gives them as long
POLL = 0.25  # seconds between two looks for the file STOP and at the launcher
LAUNCHER = "deepspeed.launcher.launch"


class StopRequests:
    """What has been asked of this process; `leave` ends it with an exit code and never returns."""

    def __init__(self, world: World, leave: Callable[[int], None]) -> None:
        self._world, self._leave = world, leave
        self._began = time.time()
        self._file: Path | None = None
        self._supervised = False
        self._received: list[str] = []
        self._deferred = False
        self._launchers: tuple[tuple[int, str | None], ...] = ()

    def watch(self, *, launched: bool) -> None:
        """Begin to watch for requests; call from the main thread, before anything that takes long.

        With `launched`, the process also stops when a launcher above it has ended.
        """
        read_fd, write_fd = os.pipe()
        os.set_blocking(write_fd, False)
        for number in process.HEEDED:
            # nohup has the hang-up ignored, and that is meant; a shell's '&' does it to Ctrl-C.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _nothing)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        if launched:
            process.die_with_parent()
            self._launchers = tuple(
                (pid, heartbeat.started(pid)) for pid in launchers(os.getppid())
            )
        threading.Thread(target=self._listen, args=(read_fd,), daemon=True).start()

    def follow(self, run_dir: Path, *, supervised: bool) -> None:
        """Heed the file STOP of this run folder.

        A supervisor removes it, and heeds it between two starts; without one, one that is older
        than this process is removed, and so is one that has been heeded.
        """
        if not self._world.is_main:
            return
        file = run_dir / "STOP"
        if not supervised and file.exists() and file.stat().st_mtime < self._began:
            file.unlink(missing_ok=True)
        self._file, self._supervised = file, supervised

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let requests wait until `asked` is called; one that is left at the end counts then."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self._received:
            self._stop_now()

    def asked(self) -> bool:
        """Whether this process has been asked to stop."""
        if self._file is not None and not self._received and self._file.exists():
            self._received.append("STOP")
        return bool(self._received)

    def finished(self, done: int, total: int) -> StopRequested:
        """Return what to raise when all is saved after step `done`; a STOP file is used up."""
        self._consume()
        why = f" ({self._received[0]})" if self._received else ""
        return StopRequested(
            f"stopped on request{why} after step {done} of {total}, which is saved: the same "
            "command goes on from there"
        )

    def _listen(self, read_fd: int) -> None:
        deadline = math.inf
        while True:
            ready, _, _ = select.select([read_fd], [], [], POLL)
            for number in os.read(read_fd, 64) if ready else b"":
                if number in process.HEEDED:
                    self._receive(signal.Signals(number))
            if not self._deferred and self.asked():
                self._stop_now()
            if any(heartbeat.started(pid) != start for pid, start in self._launchers):
                self._launchers = ()
                self._received.append("the launcher has ended")
                deadline = time.monotonic() + (_SAVING if self._deferred else 0.0)
            if time.monotonic() >= deadline:
                self._leave(ExitCode.FAULT)

    def _receive(self, number: signal.Signals) -> None:
        if number == signal.SIGINT and number.name in self._received:
            self._leave(ExitCode.INTERRUPTED)
        self._received.append(number.name)

    def _stop_now(self) -> None:
        if self._world.is_main:
            print(f"[info] Stopped on request ({self._received[0]}): nothing was lost", flush=True)
        self._consume()
        self._leave(StopRequested.exit_code)

    def _consume(self) -> None:
        if self._file is not None and not self._supervised:
            self._file.unlink(missing_ok=True)


def launchers(parent: int) -> tuple[int, ...]:
    """Return the processes whose end must end this one: the parent, and DeepSpeed's runner.

    DeepSpeed starts `deepspeed`, which starts `deepspeed.launcher.launch`, which starts the ranks;
    a runner that is killed would leave the other two behind.
    """
    if LAUNCHER not in _command(parent):
        return (parent,)
    runner = _parent(parent)
    return (parent, runner) if "deepspeed" in _command(runner) else (parent,)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Take the place of the default, which would end the process; the pipe tells the thread."""
