"""Pauses: a supervisor that is stopped, or a laptop that slept, is not a supervisor that is dead.

The agents' lease is renewed by a process beside the supervisor, `python -m train.launch.pause`,
which exists for as long as the supervisor does and runs also while that is stopped: by Ctrl-Z, by a
debugger, by a console that takes no more. The ranks go on meanwhile. If everything on a machine has
been asleep, nobody counts the time: see AwakeClock.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from train.hosts.remote import here, python_path
from train.launch import protocol
from train.launch.link import Link

_GAP = 3.0  # seconds: whoever asks the clock many times a second and then so late has not run
_STOPPED = (
    b"\n[launch] stopped: the ranks go on, and are shown again after 'fg'; kill %% ends them\n"
)


class AwakeClock:
    """Seconds during which its user ran: a call after a gap counts as one right after the last.

    `woke`: seconds since the epoch at the end of the last gap; 0 before there was any.
    """

    def __init__(self) -> None:
        self.woke = 0.0
        self._asked = _now()
        self._passed = 0.0

    def __call__(self) -> float:
        """Return the seconds since this clock was made."""
        gap, self._asked = _now() - self._asked, _now()
        if gap > _GAP:
            self.woke = time.time()
        else:
            self._passed += gap
        return self._passed


@contextmanager
def beating(links: Sequence[Link]) -> Iterator[None]:
    """Renew the lease of every agent for as long as this process exists, even if it is stopped."""
    ends = [link.inlet for link in links]
    with subprocess.Popen(
        [*here("train.launch.pause"), *map(str, ends)],
        env={**os.environ, "PYTHONPATH": python_path(os.environ.get("PYTHONPATH", ""))},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pass_fds=ends,
        process_group=0,
    ) as process:
        try:
            yield
        finally:
            process.kill()


@contextmanager
def told_pauses() -> Iterator[None]:
    """Say at Ctrl-Z what goes on meanwhile, before this process stops."""
    before = signal.getsignal(signal.SIGTSTP)
    if before == signal.SIG_DFL:
        signal.signal(signal.SIGTSTP, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)


def _stop(_number: int, _frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, _STOPPED)
    os.kill(os.getpid(), signal.SIGSTOP)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # runs on while the machine sleeps


def main(argv: Sequence[str]) -> int:
    """Send a beat to each descriptor every second, until the supervisor has closed stdin."""
    beat = protocol.encode("beat")
    while not select.select([0], [], [], protocol.BEAT)[0]:
        for end in argv:
            with suppress(OSError):  # a connection that takes no more is noticed by its silence
                os.write(int(end), beat)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
