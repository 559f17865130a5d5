"""Requests for another size of a running job, in its folder: files, so that any host may ask.

resize/<nanoseconds>-<process>.json     ranks, hosts, hostfile: removed once it is carried out
resize/<nanoseconds>-<process>.answer   a line for each sentence; the last has an exit code
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from train.errors import HostfileError
from train.hosts import hostfile
from train.hosts.hostfile import Hostfile
from train.launch import heartbeat

_FOLDER = "resize"


@dataclass(frozen=True)
class ResizeRequest:
    """How many ranks are wanted, and over which hosts: None for those that the job has."""

    path: Path
    ranks: int
    hosts: Hostfile | None

    def answer(self, text: str, code: int | None = None) -> None:
        """Tell whoever asked, if they still wait; with an exit code this is the last word."""
        answers = self.path.with_suffix(".answer")
        with suppress(OSError):
            if code is not None:
                self.path.unlink(missing_ok=True)
            if answers.exists():
                with answers.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"text": text, "code": code}) + "\n")


def ask(run_dir: Path, ranks: int, hosts: Hostfile | None) -> ResizeRequest:
    """Put a request into a run folder.

    Raises:
        OSError: it cannot be written there.
    """
    folder = run_dir / _FOLDER
    folder.mkdir(exist_ok=True)
    path = folder / f"{time.time_ns()}-{os.getpid()}.json"
    text = None
    if hosts is not None:
        text = "".join(f"{host.name} slots={host.slots}\n" for host in hosts.hosts)
    path.with_suffix(".answer").touch()
    heartbeat.write(path, {"ranks": ranks, "hosts": text, "path": hosts.path if hosts else ""})
    return ResizeRequest(path, ranks, hosts)


def oldest(run_dir: Path) -> ResizeRequest | None:
    """Return the request that has waited longest; one that cannot be read is removed."""
    for path in sorted((run_dir / _FOLDER).glob("*.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            text, name = found["hosts"], str(found["path"])
            hosts = None if text is None else hostfile.parse(str(text), name)
            return ResizeRequest(path, int(found["ranks"]), hosts)
        except (OSError, ValueError, KeyError, TypeError, HostfileError):
            path.unlink(missing_ok=True)
    return None


def answers(request: ResizeRequest) -> Sequence[tuple[str, int | None]]:
    """Return what has been answered so far: sentences, the last with an exit code."""
    try:
        lines = request.path.with_suffix(".answer").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ()
    return tuple(_answers(lines))


def _answers(lines: Sequence[str]) -> Iterator[tuple[str, int | None]]:
    for line in lines:
        with suppress(ValueError):  # half written
            found = json.loads(line)
            yield str(found["text"]), found["code"]


def forget(request: ResizeRequest) -> None:
    """Remove a request and its answers."""
    request.path.unlink(missing_ok=True)
    request.path.with_suffix(".answer").unlink(missing_ok=True)
    with suppress(OSError):
        request.path.parent.rmdir()


def clear(run_dir: Path, *, ended: bool) -> None:
    """Answer the requests that are left when a run has ended; before it begins, remove them."""
    for path in (run_dir / _FOLDER).glob("*"):
        if not ended:
            path.unlink(missing_ok=True)
        elif path.suffix == ".json":
            ResizeRequest(path, 0, None).answer("the run has ended: it was not resized", 1)
    with suppress(OSError):
        (run_dir / _FOLDER).rmdir()
