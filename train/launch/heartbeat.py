"""The rank's side of supervision: what a rank tells the agent of its host, in files.

The agent gives its ranks a private folder (ANYRANK_AGENT). There, rank k keeps

    k.pid      its process id, and the time it started, so that a reused id is not taken for it
    k.exit     how it ended: exit code, time, and the error if it has no name; missing after a kill
    k.log      what it printed (rank 0 prints to the console instead)
    k.pulse    touched whenever the main thread has moved since the last look
    k.stack    every thread's Python stack, written on SIGUSR2
    k.waiting  it has imported all and waits to join the others, until the agent writes `go`

An agent that is killed leaves no orphan: it is the ranks' parent, and the kernel ends them with it.
Without an agent (the bare `deepspeed` command) all of this is left out.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from train.errors import ExitCode

FOLDER = "ANYRANK_AGENT"
GO = "go"
_POLL = 0.05  # seconds between two looks for it
PULSE = 1.0  # seconds between two looks at the main thread


def supervised(env: Mapping[str, str]) -> bool:
    """Whether this rank was started by an agent, which shows what it prints if it fails first."""
    return FOLDER in env and "RANK" in env


def enter(env: Mapping[str, str]) -> None:
    """Report to the agent of this host, if there is one; call first, in every rank."""
    if not supervised(env):
        return
    folder, rank = Path(env[FOLDER]), env["RANK"]
    if rank != "0":
        log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
    stacks = (folder / f"{rank}.stack").open("w")
    faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=True)
    (folder / f"{rank}.pulse").touch()
    threading.Thread(target=_pulse, args=(folder / f"{rank}.pulse",), daemon=True).start()
    _end_visibly(env)
    write(folder / f"{rank}.pid", {"pid": os.getpid(), "started": started(os.getpid())})


def leave(env: Mapping[str, str], code: int, error: BaseException | None = None) -> None:
    """Tell the agent with which code, and error, this rank is about to exit; the first counts."""
    if supervised(env):
        record = Path(env[FOLDER]) / f"{env['RANK']}.exit"
        if not record.exists():
            told = "" if error is None else _described(error)
            write(record, {"code": code, "time": time.time(), "error": told})


def await_turn(env: Mapping[str, str]) -> Mapping[str, float]:
    """Wait until this rank is to join the others, when those before it have left; at once alone.

    Returns what the supervisor has told of the pause: seconds since the epoch by name.
    """
    if not supervised(env):
        return {}
    folder = Path(env[FOLDER])
    (folder / f"{env['RANK']}.waiting").touch()
    while not (folder / GO).exists():
        time.sleep(_POLL)
    marks: Mapping[str, float] = json.loads((folder / GO).read_text())
    return marks


def started(pid: int) -> str | None:
    """Return when a process began, in clock ticks since boot; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def began() -> float:
    """Return when this process began, as seconds since the epoch."""
    ticks = int(started(os.getpid()) or 0)
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age


def state(pid: int) -> str:
    """Return the kernel's letter for a process (R, S, D, T, Z); `-` if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "-"


def _end_visibly(env: Mapping[str, str]) -> None:
    shown = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        leave(env, ExitCode.FAULT, error)
        shown(kind, error, trace)

    sys.excepthook = hook
    atexit.register(leave, env, ExitCode.DONE)


def _pulse(path: Path) -> None:
    before = None
    while True:
        now = _position()
        if now != before:
            before = now
            try:
                os.utime(path)
            except OSError:  # the agent has cleared its folder away
                return
        time.sleep(PULSE)


def _position() -> tuple[tuple[int, int], ...]:
    """Return where the main thread stands, down to the instruction.

    Other threads do not count: those that look at something now and then never stand quite still.
    """
    found = []
    at = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001
    while at is not None:
        found.append((id(at.f_code), at.f_lasti))
        at = at.f_back
    return tuple(found)


def _described(error: BaseException) -> str:
    """Return an error's type, words and place, on one line, as `ValueError: no (a.py, line 3)`."""
    words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    frames = traceback.extract_tb(error.__traceback__)
    return words + "".join(f" ({Path(at.filename).name}, line {at.lineno})" for at in frames[-1:])


def write(path: Path, value: object) -> None:
    """Write JSON so that nobody reads half of it."""
    draft = path.with_suffix(path.suffix + ".draft")
    draft.write_text(json.dumps(value))
    draft.replace(path)
