"""How a run ends early: which sentence is printed, by whom, and with which exit code."""

from __future__ import annotations

import os
import re
import socket
import sys
import traceback
import warnings
from collections.abc import MutableMapping
from typing import NoReturn

from train.config import World
from train.errors import (
    AnyrankError,
    ExitCode,
    OutOfMemoryError,
    StopRequested,
    UserError,
    is_echo,
)
from train.hosts import memory, streams, tasks
from train.launch import heartbeat, oom
from train.launch.stopping import StopRequests
from train.text import format_bytes, shown


def install_handlers(env: MutableMapping[str, str]) -> tuple[World, StopRequests]:
    """Report to the supervisor, if there is one; say which rank this is, and heed requests to stop.

    torch, not imported yet, is told to print errors only: every rank would warn that it cannot name
    a peer, wherever addresses have no names. Warnings of what libraries will change in future
    versions are for their authors, and are left out.

    Raises:
        ConfigError: the launcher's variables are incomplete, or name no place to meet at.
    """
    streams.make_lasting()
    env.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning)
    env.update(tasks.variables(env))
    world = World.from_env(env)
    if "RANK" in env and not heartbeat.supervised(env):
        tasks.require_meeting_place(env)
    stop = StopRequests(world, _leave)
    stop.watch(launched="RANK" in env)
    heartbeat.enter(env)  # from here on an agent passes signals on
    return world, stop


def exit_with(error: BaseException, world: World) -> NoReturn:
    """Leave the process at once: an error that anyrank names is one sentence, any other a fault.

    What rank 0 has raised on every rank is printed by rank 0 alone, and what each rank of a host
    finds before they join is printed by the first of them; an error of one rank carries its number.
    Under the supervisor every rank prints: it shows what explains the others.
    """
    if isinstance(error, SystemExit):
        raise error
    named = _named(error)
    code = named.exit_code if named else ExitCode.FAULT
    if isinstance(error, KeyboardInterrupt):
        code = ExitCode.INTERRUPTED
    heartbeat.leave(os.environ, code, error if named is None else None)
    if not heartbeat.supervised(os.environ) and _told_elsewhere(error, named, world):
        _leave(code)
    where = "" if world.is_main else f"[rank {world.rank}] "
    if named is None:
        traceback.print_exception(error)
    elif not isinstance(named, StopRequested):
        print(shown(f"{where}[error] {named}", sys.stderr), file=sys.stderr)
    elif world.is_main:
        print(shown(f"[info] {named}", sys.stdout))
    _leave(code)


def _told_elsewhere(error: BaseException, named: AnyrankError | None, world: World) -> bool:
    """Whether another rank prints this error in the same words."""
    if world.is_main:
        return False
    if is_echo(error):
        return True
    collectives = sys.modules.get("torch.distributed")
    joined = collectives is not None and collectives.is_initialized()
    return isinstance(named, UserError) and not joined and world.local_rank != 0


def _leave(code: int) -> NoReturn:
    """End the process, all threads with it.

    Not sys.exit: a process group whose other ranks are gone can hang while it is taken down.
    """
    heartbeat.leave(os.environ, code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _named(error: BaseException) -> AnyrankError | None:
    if isinstance(error, AnyrankError):
        return error
    asked = re.search(r"can't allocate memory: you tried to allocate (\d+) bytes", str(error))
    if asked is not None:
        return OutOfMemoryError(
            f"out of host memory: {format_bytes(int(asked[1]))} were asked for, but "
            f"{format_bytes(memory.allocatable())} are available on {socket.gethostname()}"
        )
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if named or oom.says_so(str(error)):
        return OutOfMemoryError(f"out of memory: {_telling_line(str(error))}")
    return None


def _telling_line(text: str) -> str:
    """Return the first line that says what ran out: NCCL's comes after its version."""
    lines = text.splitlines() or [""]
    return next((line for line in lines if oom.says_so(line)), lines[0])
