"""One command in a process group of its own: signals reach all of it, and none of it outlives us.

DeepSpeed's runner forwards no signal on one machine, and a killed runner leaves every rank behind;
so the whole group is signalled, never the runner alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_POLL = 0.05  # seconds


def run(argv: Sequence[str], env: Mapping[str, str], grace: float = 10.0) -> int:
    """Run a command to its end and return its exit code; 128 + n if signal n ended it.

    The first SIGINT, SIGTERM or SIGHUP is passed on to the whole group; what is left of it after
    `grace` seconds, or at a second signal, is killed. The group is empty when this returns.
    """
    with _caught() as signals:
        child = subprocess.Popen(argv, env=dict(env), process_group=0, preexec_fn=die_with_parent)
        try:
            code = _attend(child, signals, grace)
        finally:
            signal_group(child.pid, signal.SIGKILL)
            child.wait()
    return 128 + signals[0] if signals and code <= 0 else code if code >= 0 else 128 - code


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends, however that comes about."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def signal_group(group: int, number: int) -> None:
    """Signal every process of a group; an empty group is no error."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _attend(child: subprocess.Popen[bytes], signals: list[int], grace: float) -> int:
    passed, deadline = 0, float("inf")
    while (code := child.poll()) is None:
        if len(signals) > passed:
            signal_group(child.pid, signals[passed] if not passed else signal.SIGKILL)
            passed += 1
            deadline = min(deadline, time.monotonic() + grace)
        if time.monotonic() > deadline:
            signal_group(child.pid, signal.SIGKILL)
        time.sleep(_POLL)
    return code


@contextmanager
def _caught() -> Iterator[list[int]]:
    """Collect the forwarded signals in a list instead of dying of them."""
    caught: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        caught.append(number)

    before = {number: signal.signal(number, note) for number in FORWARDED}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
