"""Real ranks for tests, without a launcher: processes forked from one that has imported torch.

`deepspeed` spends most of a short test importing the same libraries once per rank; these tests are
about what the ranks do together, and others start them as a user would.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
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

    torch.set_num_threads(1)
    gang = connect(World.from_env(os.environ), os.environ)
    act(gang, *args)
    gang.close()
