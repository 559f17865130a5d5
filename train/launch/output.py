"""The run's output, half a second late, so that the first failing rank's error comes first.

When a rank dies, the others fail within milliseconds and complain loudly of lost connections. What
the ranks print is therefore held back for a moment: an error that explains the others overtakes.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from pathlib import Path

from train.text import shown

DELAY = 0.5  # seconds
TRACEBACK = "Traceback (most recent call last)"
CLEARED = "\r\x1b[K"  # back to the line's beginning, and all of it erased


class Output:
    """The console, and a file in the run folder, once a run has begun there, that keeps it."""

    def __init__(self, log: Path | None) -> None:
        self.log = log
        self.held: deque[tuple[float, str, str]] = deque()
        self.whole = True  # the last line that was printed has ended
        self.echoes = False  # what fails now fails for a reason that has been told
        self.echoing = False

    def hold(self, stream: str, data: str) -> None:
        """Take a chunk of the ranks' output, `out` or `err`."""
        self.held.append((time.monotonic(), stream, data))

    def hold_first(self, stream: str, data: str) -> None:
        """Put a chunk before all that is held; it is printed at the next release."""
        self.held.appendleft((0.0, stream, data))

    def release(self, age: float = DELAY) -> None:
        """Print the chunks that are at least `age` seconds old."""
        now = time.monotonic()
        while self.held and now - self.held[0][0] >= age:
            _, stream, data = self.held.popleft()
            data = self.without_echo(data) if self.echoes else data
            _print(stream, data)
            self.whole = data.endswith(("\n", "\r")) if data else self.whole

    def expect_echo(self, *, echoes: bool) -> None:
        """Say whether a traceback is only the echo of what has been told: the log has it then."""
        self.echoes, self.echoing = echoes, False

    def without_echo(self, data: str) -> str:
        """Return a chunk up to a traceback; the rest, and all that follows, goes to the log."""
        place = 0 if self.echoing else data.find(TRACEBACK)
        if place < 0:
            return data
        self.echoing = True
        if self.log is not None and (self.log.parent / "attempts").is_dir():
            with self.log.open("a", encoding="utf-8", errors="surrogateescape") as file:
                file.write(data[place:])
        return data[:place]

    def say(self, text: str) -> None:
        """Print a line of the launcher's own, at once; on a terminal it takes a bar's place."""
        before = "" if self.whole else CLEARED if sys.stderr.isatty() else "\n"
        _print("err", before + shown(f"[launch] {text}", sys.stderr) + "\n")
        self.whole = True
        if self.log is not None and (self.log.parent / "attempts").is_dir():
            with self.log.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def _print(stream: str, data: str) -> None:
    file = sys.stdout if stream == "out" else sys.stderr
    file.buffer.write(data.encode(errors="surrogateescape"))
    file.flush()
