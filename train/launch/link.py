"""The supervisor's end of one host's agent: on this machine, by ssh or by srun."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from train.hosts import process
from train.hosts.probe import HostReport
from train.hosts.remote import python_path
from train.launch import protocol

Events: TypeAlias = "queue.Queue[tuple[Link, protocol.Message | None]]"


class Link:
    """An agent, and what it has said: every message is put into `events` as (link, message).

    The connection's end is the message None.
    """

    def __init__(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], events: Events
    ) -> None:
        self.name, self.events = name, events
        self.report: HostReport | None = None
        self.reported = 0.0  # seconds since the epoch
        self.closed = False
        self.lines = protocol.Lines()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the link)
        env = {**env, "PYTHONPATH": python_path(env.get("PYTHONPATH", ""))}
        self.process = subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            process_group=0,
            bufsize=0,
        )
        assert self.process.stdin is not None
        self.inlet = self.process.stdin.fileno()
        os.set_blocking(self.inlet, False)
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, kind: str, **content: Any) -> None:
        """Send one message; a connection that takes no more is noticed by its silence."""
        assert self.process.stdin is not None
        with suppress(OSError, ValueError):
            self.process.stdin.write(protocol.encode(kind, **content))

    def error(self) -> str:
        """Return what the connection itself complained about, on one line."""
        self.errors.seek(0)
        text = self.errors.read()[-2000:].decode(errors="replace")
        lines = [*self.lines.noise[-3:], *text.splitlines()[-3:]]
        return "; ".join(line.strip() for line in lines if line.strip())

    def close(self, patience: float) -> None:
        """Let the agent end its ranks and itself; after `patience` seconds drop the connection."""
        assert self.process.stdin is not None
        self.send("end")
        with suppress(OSError):
            self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        process.signal_group(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.errors.close()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        while chunk := self.process.stdout.read(1 << 16):
            for message in self.lines.feed(chunk):
                self.events.put((self, message))
        self.events.put((self, None))
