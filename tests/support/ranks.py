"""Real ranks and runs for tests, without a launcher: forked from a process that imported torch.

A start spends most of a short test importing the same libraries once per rank; these tests are
about what ranks do, and others start them as a user would.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.support.launching import free_port

PRELOADED = [
    "torch",
    "deepspeed",
    "transformers",
    "peft",
    "train.run.session",
    "train.run.finishing",
]


def run_main(
    words: Sequence[str], folder: Path, timeout: float = 300, **env: str
) -> subprocess.CompletedProcess[str]:
    """Do what `python train/main.py words` does in a folder, with more variables; none is left."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with TemporaryDirectory() as shown:
        out, err = (Path(shown, name) for name in ("out", "err"))
        process = context.Process(target=_main, args=(tuple(words), folder, env, out, err))
        process.start()
        process.join(timeout)
        process.kill()
        process.join()
        told = (path.read_text(errors="replace") for path in (out, err))
        return subprocess.CompletedProcess(words, process.exitcode or 0, *told)


def _main(words: Sequence[str], folder: Path, env: dict[str, str], out: Path, err: Path) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    os.environ |= {"OMP_NUM_THREADS": "1"} | env
    sys.argv = ["train/main.py", *words]
    import torch

    from train.main import main

    torch.set_num_threads(1)
    main()


def together(size: int, act: Callable[..., None], *args: Any, timeout: float = 300) -> None:
    """Run act(gang, *args) on `size` ranks; fail if one of them fails, and leave none behind."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    port = free_port()
    ranks = [
        context.Process(target=_rank, args=(rank, size, port, act, args)) for rank in range(size)
    ]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + timeout
    try:
        while any(process.exitcode is None for process in ranks):
            if any(process.exitcode for process in ranks) or time.monotonic() > deadline:
                break
            time.sleep(0.05)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    codes = [process.exitcode for process in ranks]
    if any(codes):
        pytest.fail(f"the ranks ended with {codes} (-9: killed after another, or too slow)")


def _rank(rank: int, size: int, port: int, act: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1",
        "LOCAL_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    import torch

    from train.config import World
    from train.engine.gang import connect

    gc.freeze()  # as a run does: what was imported is no garbage
    torch.set_num_threads(1)
    gang = connect(World.from_env(os.environ), os.environ)
    act(gang, *args)
    gang.close()
