"""How a run ends early: which sentence is printed, by whom, and with which exit code."""

from __future__ import annotations

import os
import re
import socket
import sys
import time
import traceback
from collections.abc import MutableMapping
from typing import NoReturn

from train.checkpoints import spoken
from train.config import World
from train.errors import AnyrankError, OutOfMemoryError, StopRequested
from train.launch import memory, rank
from train.stopping import Stopping

MAIN_SPEAKS_FIRST = 3.0  # seconds in which the launcher, seeing rank 0 gone, silences the others


def begin(env: MutableMapping[str, str]) -> tuple[World, Stopping]:
    """Report to the supervisor, if there is one; say which rank this is, and heed requests to stop.

    torch, not imported yet, is told to print errors only: every rank would warn that it cannot name
    a peer, wherever addresses have no names.

    Raises:
        ConfigError: the launcher's variables are incomplete.
    """
    env.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    rank.enter(env)
    world = World.from_env(env)
    stop = Stopping(world, _leave)
    stop.watch(launched="RANK" in env)
    return world, stop


def end(error: BaseException, world: World) -> NoReturn:
    """Leave the process at once: an error that anyrank names is one sentence, any other a fault.

    An error that all ranks share is printed by rank 0 alone: the others wait, and are ended by the
    launcher meanwhile. One that only this rank has is printed with the rank's number.
    """
    if isinstance(error, SystemExit):
        raise error
    named = _named(error)
    code = named.exit_code if named else 130 if isinstance(error, KeyboardInterrupt) else 1
    rank.leave(os.environ, code)
    if not (world.is_main or rank.supervised(os.environ)):
        time.sleep(MAIN_SPEAKS_FIRST)
    where = "" if world.is_main else f"[rank {world.rank}] "
    if named is None:
        traceback.print_exception(error)
    elif isinstance(named, StopRequested):
        print(f"[info] {named}") if world.is_main else None
    else:
        print(f"{where}[error] {named}", file=sys.stderr)
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End the process, all threads with it.

    Not sys.exit: a process group whose other ranks are gone can hang while it is taken down.
    """
    rank.leave(os.environ, code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _named(error: BaseException) -> AnyrankError | None:
    if isinstance(error, AnyrankError):
        return error
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OutOfMemoryError(
            f"out of memory: {str(error).splitlines()[0] if str(error) else ''}"
        )
    asked = re.search(r"can't allocate memory: you tried to allocate (\d+) bytes", str(error))
    if asked is not None:
        return OutOfMemoryError(
            f"out of host memory: {spoken(int(asked[1]))} were asked for, but "
            f"{spoken(memory.allocatable())} are available on {socket.gethostname()}"
        )
    return None
