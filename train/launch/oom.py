"""What running out of memory teaches: the prediction of the plan that failed is out of reach now.

The supervisor notes it in the attempt's folder; the next start plans below it. So each plan after
a failure is smaller than the last, with the same batch, until one fits or none is left.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

NOTE = "out_of_memory.json"
# What is said, in small letters, where a device or the host has no memory left. Not among them are
# Triton's "out of resource: shared memory" and a full disk, which a smaller plan does not mend.
TEXTS = (
    "out of memory",  # torch, CUDA and HIP (also of pinned memory), NCCL and RCCL, Triton
    "out_of_memory", "outofmemory", "errormemoryallocation",  # CUDA's and HIP's names of the code
    "status_alloc_failed", "allocation_failed",  # cuBLAS, cuSPARSE, cuSOLVER, cuDNN, hipBLAS …
    "failed to cuda calloc", "failed to cuda host alloc", "failed to cuda malloc",  # NCCL, RCCL
    "cuda failure 2 ", "hip failure 2 ",
    "cannot allocate memory", "can't allocate memory", "bad_alloc",  # the kernel, torch, C++
)  # fmt: skip
MARGIN = 0.95  # share of a failed plan's predicted bytes that the next plan may be predicted at


def says_so(text: str) -> bool:
    """Whether an error's text says that a device or the host has run out of memory."""
    return any(words in text.lower() for words in TEXTS)


def note(run_dir: Path, rank: int, host: str) -> float | None:
    """Note that the newest attempt's plan did not fit; return the bytes it was predicted at."""
    attempts = sorted(path for path in (run_dir / "attempts").glob("[0-9]*") if path.is_dir())
    if not attempts:
        return None
    predicted = _bytes(attempts[-1] / "plan.json", "memory", "total")
    if predicted is not None:
        devices = _read(attempts[-1] / "environment.json").get("hosts", [])
        names = sorted({str(device).partition(": ")[2] for device in devices})
        content = {"rank": rank, "host": host, "predicted": predicted, "devices": names}
        (attempts[-1] / NOTE).write_text(json.dumps(content, indent=2) + "\n")
    return predicted


def limit(run_dir: Path, devices: Collection[str]) -> float | None:
    """Return the bytes that a plan may be predicted at on each device; None: nothing is known.

    What ran out on other kinds of devices than these teaches nothing: these may be larger.
    """
    notes = (run_dir / "attempts").glob(f"*/{NOTE}")
    alike = [path for path in notes if set(devices) & set(_read(path).get("devices", devices))]
    known = [one for path in alike if (one := _bytes(path, "predicted")) is not None]
    return MARGIN * min(known) if known else None


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _bytes(path: Path, *keys: str) -> float | None:
    found: Any = _read(path)
    try:
        for key in keys:
            found = found[key]
        return float(found)
    except (ValueError, KeyError, TypeError):
        return None
