"""Where the ranks' output goes: two pipes, or a terminal where the supervisor has one."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import termios
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Streams:
    """The ends that the ranks write to, and the named ends that are read."""

    inner_out: int
    inner_err: int
    outer: tuple[tuple[str, int], ...]

    def close_inner(self) -> None:
        """Close the ranks' ends here, after the command has been started with them."""
        for end in {self.inner_out, self.inner_err}:
            os.close(end)


def streams(size: Sequence[int] | None) -> Streams:
    """Open a pipe each for output and errors, or with `size` (rows, columns) one terminal."""
    if size is None:
        out, inner_out = os.pipe()
        err, inner_err = os.pipe()
        return Streams(inner_out, inner_err, (("out", out), ("err", err)))
    outer, inner = os.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", size[0], size[1], 0, 0))
    raw = termios.tcgetattr(inner)
    raw[1] &= ~termios.OPOST  # the real terminal at the other end does this
    termios.tcsetattr(inner, termios.TCSANOW, raw)
    return Streams(inner, inner, (("out", outer),))


def own_size() -> tuple[int, int] | None:
    """Return rows and columns of this process's terminal; None if its output goes elsewhere."""
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        return None
    columns, rows = os.get_terminal_size(sys.stdout.fileno())
    return rows, columns
