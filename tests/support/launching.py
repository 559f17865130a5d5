"""Start a script under the real DeepSpeed launcher, as a user would, and wait for it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def deepspeed(
    ranks: int, script: Path, args: Sequence[str], timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run `deepspeed --num_gpus ranks script args`, one thread a rank; nothing of it survives."""
    runner = Path(sys.executable).with_name("deepspeed")
    words = [str(runner), "--num_gpus", str(ranks), "--master_port", str(free_port())]
    with subprocess.Popen(
        [*words, str(script), *args], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
