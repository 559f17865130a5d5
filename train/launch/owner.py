"""Who runs a run folder: one at a time, held by a lock that ends with its process."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from train.errors import ConfigError

_NAME = "OWNER"
_PATIENCE = 5.0  # seconds for one that is ending to end


def own(run_dir: Path, say: Callable[[str], None]) -> None:
    """Take a run folder, made if need be, for as long as this process lives.

    Raises:
        ConfigError: another process has it, or the folder cannot be written.
    """
    path = run_dir / _NAME
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # closed by the process's end
    except OSError as error:
        raise ConfigError(
            f"the run folder {run_dir} cannot be written ({error.strerror}): give another --run-dir"
        ) from None
    try:
        _lock(file, run_dir)
    except OSError as error:
        say(f"{run_dir} is on a file system without locks ({error.strerror}): start it only once")
    os.ftruncate(file, 0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}, since {since}".encode(), 0)


def owner_of(run_dir: Path) -> str | None:
    """Return who runs a run folder, in words; None if nobody does, or that cannot be known."""
    try:
        with (run_dir / _NAME).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read(200).decode(errors="replace") or "another process"
    except OSError:
        pass
    return None


def disown_empty(run_dir: Path) -> None:
    """Remove a run folder that holds nothing but its owner's name."""
    if [path.name for path in run_dir.glob("*")] == [_NAME]:
        (run_dir / _NAME).unlink(missing_ok=True)
        with suppress(OSError):
            run_dir.rmdir()


def _lock(file: int, run_dir: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                owner = os.pread(file, 200, 0).decode(errors="replace") or "another process"
                os.close(file)
                raise ConfigError(
                    f"{run_dir} is being run by {owner}: stop that one first, or give another "
                    f"--run-dir; 'anyrank resize {run_dir} N' gives it other GPUs (if no such "
                    f"process is left, remove {run_dir / _NAME})"
                ) from None
            time.sleep(0.1)
