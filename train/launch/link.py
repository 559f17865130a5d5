"""The supervisor's end of one host's agent: on this machine, by ssh or by srun."""

from __future__ import annotations

import os
import queue
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from train.launch import process, wire

ROOT = Path(__file__).resolve().parents[2]

# BatchMode: never ask for a password. The host's key is checked as ssh is set up to check it.
SSH = (
    "ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5",
    "-o", "ServerAliveCountMax=3", "-o", "LogLevel=ERROR",
)  # fmt: skip


def here(module: str) -> tuple[str, ...]:
    """Return the command that runs one of our modules on this machine."""
    return (sys.executable, "-P", "-m", module)


def over_ssh(name: str, module: str, cwd: Path) -> tuple[str, ...]:
    """Return the command that runs one of our modules on another host, in the same folder."""
    python = shlex.join(("env", *_paths(), *here(module)))
    return (*SSH, "--", name, f"cd {shlex.quote(str(cwd))} && exec {python}")


def over_srun(name: str, module: str, cwd: Path) -> tuple[str, ...]:
    """Return the command that runs one of our modules on a node of this Slurm job."""
    step = ("--nodes=1", "--ntasks=1", f"--nodelist={name}", f"--chdir={cwd}", "--overlap")
    quiet = ("--kill-on-bad-exit=0", "--unbuffered", "--input=all", "--quit-on-interrupt")
    return ("srun", *step, *quiet, "env", *_paths(), *here(module))


def _paths() -> tuple[str, ...]:
    """Return where Python and its libraries are to look on another host: where they do here."""
    own = os.environ.get("PYTHONPATH", "").split(":")
    found = [f"PYTHONPATH={':'.join(dict.fromkeys((str(ROOT), *filter(None, own))))}"]
    if os.environ.get("LD_LIBRARY_PATH"):
        found.append(f"LD_LIBRARY_PATH={os.environ['LD_LIBRARY_PATH']}")
    return tuple(found)


Events: TypeAlias = "queue.Queue[tuple[Link, wire.Message | None]]"


class Link:
    """An agent, and what it has said: every message is put into `events` as (link, message).

    The connection's end is the message None.
    """

    def __init__(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], events: Events
    ) -> None:
        self.name, self.events = name, events
        self.heard = time.monotonic()
        self.hello: dict[str, Any] | None = None
        self.closed = False
        self.lines = wire.Lines()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the link)
        env = {
            **env,
            "PYTHONPATH": f"{ROOT}:{env['PYTHONPATH']}" if "PYTHONPATH" in env else str(ROOT),
        }
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
        os.set_blocking(self.process.stdin.fileno(), False)
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, kind: str, **content: Any) -> None:
        """Send one message; a connection that takes no more is noticed by its silence."""
        assert self.process.stdin is not None
        with suppress(OSError, ValueError):
            self.process.stdin.write(wire.encode(kind, **content))

    def trouble(self) -> str:
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
                self.heard = time.monotonic()
                self.events.put((self, message))
        self.events.put((self, None))
