"""Measure this machine for the planner: products by size, memory bandwidth, a collective by size.

    python -m train.engine.calibrate FOLDER

Takes under half a minute; writes the planner's calibration of this host's devices into FOLDER.
Without a GPU it measures one core and two gloo ranks.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from train.engine.device import architecture
from train.planning.calibration import Calibration, write_calibration
from train.planning.hardware import find_gpu

PATIENCE = 1.0  # seconds for each size


def measure() -> Calibration:
    """Return this host's rates; every figure is the best over its sizes."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    if not cuda:
        torch.set_num_threads(1)
    return Calibration(
        device=_planners_name() if cuda else "cpu",
        achievable=product_rate(device),
        bandwidth=copy_rate(device),
        link=collective_rate(torch.cuda.device_count() if cuda else 2, cuda=cuda),
    )


def _planners_name() -> str:
    """Return what the planner calls this GPU: torch's name where the table lacks it."""
    properties = torch.cuda.get_device_properties(0)
    return find_gpu(properties.name, properties.total_memory, architecture(properties)).name


def product_rate(device: torch.device) -> float:
    """Return the FLOP per second of square products, bf16 on a GPU and fp32 on a core."""
    cuda = device.type == "cuda"
    best = 0.0
    for side in (2048, 4096, 8192, 16384) if cuda else (256, 512, 1024):
        # Random, because equal numbers switch fewer bits, and a GPU clocks higher with them.
        matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16 if cuda else None)
        result = torch.empty_like(matrix)
        seconds = _time(partial(torch.mm, matrix, matrix, out=result), device)
        best = max(best, 2 * side**3 / seconds)
    return best


def copy_rate(device: torch.device) -> float:
    """Return the bytes per second of memory, read and written both counted."""
    best = 0.0
    # Larger than the caches: an MI300's holds 2**28 bytes, a server's processor often as much.
    for size in (2**30, 2**31) if device.type == "cuda" else (2**28, 2**29):
        source = torch.ones(size, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        seconds = _time(partial(target.copy_, source), device)
        best = max(best, 2 * size / seconds)
    return best


def collective_rate(ranks: int, *, cuda: bool) -> float:
    """Return the bytes per second that each of this host's ranks sends in an all-reduce."""
    if ranks < 2:
        return 0.0
    with tempfile.TemporaryDirectory() as folder:
        start: Any = spawn
        start(partial(_rank, cuda=cuda), args=(ranks, folder), nprocs=ranks)
        return float(Path(folder, "rate").read_text())


def _rank(rank: int, ranks: int, folder: str, *, cuda: bool) -> None:
    backend, place = "nccl" if cuda else "gloo", f"file://{folder}/store"
    dist.init_process_group(backend, init_method=place, rank=rank, world_size=ranks)
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    best = 0.0
    for size in (2**24, 2**27, 2**29) if cuda else (2**20, 2**23):
        data = torch.zeros(size // 4, device=device)
        seconds = _time(partial(dist.all_reduce, data), device, fixed=10)
        best = max(best, 2 * (ranks - 1) / ranks * size / seconds)
    if rank == 0:
        Path(folder, "rate").write_text(str(best))
    dist.destroy_process_group()


def _time(act: Callable[[], object], device: torch.device, fixed: int = 0) -> float:
    """Return the seconds of one act: repeated `fixed` times, or for PATIENCE seconds."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    act()
    wait()
    count, start = 0, time.perf_counter()
    while count < fixed or (not fixed and time.perf_counter() - start < PATIENCE):
        act()
        count += 1
        if not fixed:
            wait()
    wait()
    return (time.perf_counter() - start) / count


def main(argv: list[str]) -> int:
    """Measure, write, say what was found."""
    found = measure()
    path = write_calibration(Path(argv[1]), found)
    print(
        f"{found.device}: products {found.achievable / 1e12:.3g} TFLOP/s, memory "
        f"{found.bandwidth / 1e9:.3g} GB/s, collectives {found.link / 1e9:.3g} GB/s; kept in {path}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
