"""The run's output, half a second late, so that the first failing rank's error comes first.

When a rank dies, the others fail within milliseconds and complain loudly of lost connections. What
the ranks print is therefore held back for a moment: an error that explains the others overtakes.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from train.text import shown

DELAY = 0.5  # seconds
LONGEST = 1 << 22  # bytes that wait for a console
TRACEBACK = "Traceback (most recent call last)"
CLEARED = "\r\x1b[K"  # back to the line's beginning, and all of it erased


def put(stream: str, data: bytes) -> None:
    """Print a chunk, `out` or `err`; waits for as long as the console takes nothing."""
    file = sys.stdout if stream == "out" else sys.stderr
    file.buffer.write(data)
    file.flush()


class Printer:
    """Prints in a thread, in order, so that a console that takes nothing keeps nobody waiting.

    A full pipe, a pager, Ctrl-S or a line that is down would keep the supervisor from its hosts.
    """

    def __init__(self, longest: int = LONGEST) -> None:
        self.longest, self.waiting, self.dropped = longest, 0, 0
        self.lock = threading.Lock()
        self.chunks: queue.SimpleQueue[tuple[str, bytes] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._show, daemon=True)
        self.thread.start()

    def write(self, stream: str, data: bytes) -> None:
        """Take a chunk, or leave it out if `longest` bytes wait already: that is said then."""
        with self.lock:
            if self.waiting > self.longest:
                self.dropped += len(data)
                return
            data = self._gap() + data
            self.waiting += len(data)
        self.chunks.put((stream, data))

    def close(self) -> None:
        """Wait until all has been printed."""
        if gap := self._gap():
            self.chunks.put(("err", gap))
        self.chunks.put(None)
        self.thread.join()

    def _gap(self) -> bytes:
        dropped, self.dropped = self.dropped, 0
        said = f"[launch] the console took nothing: {dropped / 1e6:.1f} MB of output are left out"
        return f"\n{said}\n".encode() if dropped else b""

    def _show(self) -> None:
        while (chunk := self.chunks.get()) is not None:
            put(*chunk)
            with self.lock:
                self.waiting -= len(chunk[1])


class Output:
    """The console, and a file in the run folder, once a run has begun there, that keeps it.

    `write`: takes what is to be shown, by stream.
    """

    def __init__(self, log: Path | None, write: Callable[[str, bytes], None] = put) -> None:
        self.log, self.write = log, write
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
            self.write(stream, data.encode(errors="surrogateescape"))
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
        self._keep(data[place:])
        return data[:place]

    def say(self, text: str) -> None:
        """Print a line of the launcher's own, at once; on a terminal it takes a bar's place."""
        before = "" if self.whole else CLEARED if sys.stderr.isatty() else "\n"
        line = before + shown(f"[launch] {text}", sys.stderr) + "\n"
        self.write("err", line.encode(errors="surrogateescape"))
        self.whole = True
        self._keep(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def _keep(self, text: str) -> None:
        """Append to the file; a disk that is full ends no run for that."""
        log = self.log
        if log is None or not (log.parent / "attempts").is_dir():
            return
        try:
            with log.open("a", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
        except OSError as error:
            self.log = None
            self.say(f"{log} cannot be written ({error.strerror}): what follows is shown here only")
