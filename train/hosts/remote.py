"""Our modules on other hosts: by ssh, by srun, or on all hosts at the same time."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.hosts import network
from train.hosts.hostfile import Host
from train.paths import ROOT

# BatchMode: never ask for a password. The host's key is checked as ssh is set up to check it.
SSH = (
    "ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5",
    "-o", "ServerAliveCountMax=3", "-o", "LogLevel=ERROR",
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What one host's module printed, or the error that kept it from printing anything.

    `time`: seconds since the epoch, by this machine's clock, when the answer came.
    """

    host: Host
    content: Mapping[str, Any] | None
    error: str = ""
    time: float = 0.0


def ask(
    hosts: Sequence[Host], module: str, words: Sequence[str], cwd: Path, patience: float
) -> tuple[Answer, ...]:
    """Run `module words` on every host; a host that is silent for `patience` seconds has failed."""
    with ThreadPoolExecutor(max_workers=min(64, len(hosts))) as pool:
        return tuple(pool.map(lambda host: _ask(host, module, words, cwd, patience), hosts))


def command(name: str, module: str, words: Sequence[str], cwd: Path) -> tuple[str, ...]:
    """Return the command that runs a module, with plain words, here or on another host."""
    if network.is_here(name):
        return (*here(module), *words)
    *start, remote = over_ssh(name, module, cwd)
    return (*start, " ".join((remote, *map(_quoted, words))))


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def _ask(host: Host, module: str, words: Sequence[str], cwd: Path, patience: float) -> Answer:
    argv = command(host.name, module, words, cwd)
    env = {**os.environ, "PYTHONPATH": python_path(os.environ.get("PYTHONPATH", ""))}
    try:
        shown = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=patience, env=env, cwd=cwd, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Answer(host, None, f"no answer within {patience:.0f} s")
    except OSError as error:
        return Answer(host, None, str(error))
    for line in reversed(shown.stdout.splitlines()):
        if line.startswith("{"):
            return Answer(host, json.loads(line), time=time.time())
    said = [line.strip() for line in shown.stderr.splitlines() if line.strip()]
    return Answer(host, None, "; ".join(said[-2:]) or f"exit code {shown.returncode}")


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


def python_path(own: str) -> str:
    """Return a PYTHONPATH by which our modules are found, before what it held already."""
    return ":".join(dict.fromkeys((str(ROOT), *filter(None, own.split(":")))))


def _paths() -> tuple[str, ...]:
    """Return where Python and its libraries are to look on another host: where they do here."""
    found = [f"PYTHONPATH={python_path(os.environ.get('PYTHONPATH', ''))}"]
    if os.environ.get("LD_LIBRARY_PATH"):
        found.append(f"LD_LIBRARY_PATH={os.environ['LD_LIBRARY_PATH']}")
    return tuple(found)
