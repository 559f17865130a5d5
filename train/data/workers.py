"""Tasks shared out to forked processes, their results in the tasks' order.

A process is forked when there is a task and none is free, so what it needs is there already and is
not sent. It gets its next task when it has done the one before: no more tasks and results are held
than there are processes. All end with the process that began them, however that ends.
"""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar, cast

from train.data.render import NoTemplateError
from train.errors import DataError, FaultError
from train.hosts.process import HEEDED, die_with_parent

T = TypeVar("T")
R = TypeVar("R")
RAISED = (DataError, NoTemplateError)  # by tasks; whatever else they raise is a fault


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def shared_out(work: Callable[[T], R], tasks: Iterable[T], processes: int) -> Iterator[R]:
    """Yield the result of each task, in order, from as many forked processes as it takes.

    Raises:
        DataError, NoTemplateError: a task has; its turn comes first.
        FaultError: a process ended before its task was done, or raised something else.
    """
    pool: list[Any] = []
    pipes: list[Connection] = []
    doing: dict[Connection, int] = {}
    done: dict[int, Any] = {}
    turn = 0
    try:
        for number, task in enumerate(tasks):
            if len(doing) == len(pipes) and len(pipes) < processes:
                pool.append(_start(work, pipes))
            while len(doing) == len(pipes) or number - turn > 2 * processes:
                _collect(doing, done)
                while turn in done:
                    yield _told(done.pop(turn))
                    turn += 1
            free = next(pipe for pipe in pipes if pipe not in doing)
            doing[free] = number
            free.send(task)
        while doing or done:
            while turn in done:
                yield _told(done.pop(turn))
                turn += 1
            if doing:
                _collect(doing, done)
    finally:
        for pipe in pipes:
            pipe.close()
        for process in pool:
            process.kill() if doing else None
            process.join()


def _start(work: Callable[[T], R], pipes: list[Connection]) -> Any:
    """Fork a process, and add the pipe to it."""
    # Where it was used before a fork, a tokenizer's library warns of threads that are not there.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    here, there = get_context("fork").Pipe()
    process = get_context("fork").Process(
        target=_serve, args=(work, there, (*pipes, here)), daemon=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: see _serve
        process.start()
    there.close()
    pipes.append(here)
    return process


def _serve(work: Callable[[T], R], pipe: Connection, others: Iterable[Connection]) -> None:
    """Do tasks until the pipe is closed; of the parent's threads this process has none."""
    die_with_parent()
    for number in HEEDED:  # a terminal's Ctrl-C reaches all: the parent sees to the end
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    for other in others:
        other.close()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            task = pipe.recv()
            try:
                result: Any = (work(task), None)
            except RAISED as error:
                result = (None, error)
            except Exception:
                result = (None, FaultError(f"a process that tokenizes: {traceback.format_exc()}"))
            pipe.send(result)


def _collect(doing: dict[Connection, int], done: dict[int, Any]) -> None:
    """Wait for results.

    Raises:
        FaultError: a process ended without one.
    """
    for ready in wait(list(doing)):
        pipe = cast(Connection, ready)
        try:
            done[doing[pipe]] = pipe.recv()
        except (EOFError, ConnectionResetError):
            raise FaultError(
                "a process that tokenizes was killed, as where memory runs out: what was made is "
                "kept; start again, with fewer cores if need be (taskset -c 0-7 …)"
            ) from None
        del doing[pipe]


def _told(result: tuple[R, Exception | None]) -> R:
    if result[1] is not None:
        raise result[1]
    return result[0]
