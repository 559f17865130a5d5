"""Standard streams that last as long as the process, whatever becomes of who reads them."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any


class LastingStream(io.RawIOBase):
    """Writes to a descriptor; once that fails, what follows is dropped, and nothing is raised.

    A closed pipe or terminal, or a full disk, is no reason to end a training. A reader that has
    gone knows that it has; another reason is told on stderr.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        """Whether it takes anything: always."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether the descriptor is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, data: Any, /) -> int:
        """Write bytes, or drop them, and return how many were taken."""
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._descriptor)
        os.close(nowhere)
        if self._descriptor == 1 and error.errno not in (errno.EPIPE, errno.EIO):
            with suppress(OSError):
                said = f"[info] stdout takes no more ({error.strerror}): the run goes on without\n"
                os.write(2, said.encode())


def prepare() -> None:
    """Have this process print `?` for what its terminal's encoding lacks, and need no streams.

    /dev/null is opened for each that it was started without: otherwise the next file that is opened
    takes the number, and gets what is meant for a console.
    """
    while (lowest := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(lowest, True)
    os.close(lowest)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  (for as long as the process lives)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, _lasting(descriptor))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def make_lasting() -> None:
    """Let stdout and stderr outlive whoever reads them; call at the process's beginning."""
    prepare()
    if sys.stdout is sys.__stdout__:  # not a test's
        sys.stdout = _lasting(1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _lasting(2)


def _lasting(descriptor: int) -> io.TextIOWrapper:
    """Return a text stream, flushed at each line, of the encoding that Python has chosen."""
    found = sys.__stdout__ if descriptor == 1 else sys.__stderr__
    encoding = found.encoding if found else "utf-8"
    buffer = io.BufferedWriter(LastingStream(descriptor))
    return io.TextIOWrapper(buffer, encoding, "replace", line_buffering=True)
