"""One of our modules, run on every host at the same time; what each printed as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.launch import network
from train.launch.hostfile import Host
from train.launch.link import ROOT, here, over_ssh


@dataclass(frozen=True)
class Answer:
    """What one host said: facts, or the trouble that kept it from saying any; and when it came."""

    host: Host
    facts: Mapping[str, Any] | None
    trouble: str = ""
    heard: float = 0.0


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
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
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
            return Answer(host, json.loads(line), heard=time.time())
    said = [line.strip() for line in shown.stderr.splitlines() if line.strip()]
    return Answer(host, None, "; ".join(said[-2:]) or f"exit code {shown.returncode}")
