"""Saving behind training, in the rank-free format.

A save copies the state that this rank owns to host memory; everything else, from the checksums to
the mark of completeness, happens in a thread that agrees with the other ranks' through a group of
its own. Never are two saves under way.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from train.checkpoint import folder as checkpoints
from train.checkpoint.failpoint import failpoint
from train.checkpoint.folder import FULL
from train.checkpoint.identity import RunFingerprint
from train.checkpoint.index import Index
from train.checkpoint.slices import STATE, ShardData, ShardRef, TensorMetadata, write_shards
from train.engine import zero
from train.engine.gang import SETUP_TIMEOUT
from train.engine.mesh import Mesh
from train.engine.step import Engine
from train.errors import CheckpointError, FaultError
from train.planning.memory import STAGED

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class Saver:
    """Writes checkpoints of an engine into a run folder; every rank calls every method alike.

    `attempt` is this start's folder, known to rank 0 alone.
    """

    def __init__(
        self,
        engine: Engine,
        run: Path,
        attempt: Path | None,
        fingerprint: RunFingerprint,
        keep: int,
    ) -> None:
        self._engine, self._run, self._attempt = engine, run, attempt
        self._fingerprint, self._keep = fingerprint, keep
        group = dist.new_group(backend="gloo", timeout=SETUP_TIMEOUT)
        self._background = replace(engine.gang, control=group)
        self._pool = ThreadPoolExecutor(1, "save")
        self._pending: Future[None] | None = None
        self._staging: torch.Tensor | None = None
        buffers = zero.buffers_of(engine).values()
        kept = sum(buffer.numel() * buffer.element_size() for buffer in buffers)
        elements = sum(prod(shape) for shape in zero.trained_shapes(engine).values())
        self._bytes = 12 * elements + kept
        self._bounce: torch.Tensor | None = None
        staging = self._reserve()  # so that it fails now, not at the end, if it must
        on_gpu = engine.gang.device.type == "cuda"
        self._touched = self._pool.submit(staging.zero_) if on_gpu else None

    def save(self, step: int, best: int | None = None) -> None:
        """Save the state after `step` steps; return once it has been copied.

        `best`: a step whose checkpoint is kept besides the newest ones.

        Raises:
            CheckpointError: the save before this one failed, or there is no space for this one.
            FaultError: a newer start of this run has taken over, or the folder cannot be written.
        """
        tidy = partial(checkpoints.prune, self._run, self._keep, best)
        self._save(step, self._run, STATE, tidy)

    def save_model(self, step: int) -> None:
        """Save the masters alone, apart from the checkpoints: a third of one.

        Raises:
            CheckpointError: the save before this one failed, or there is no space for this one.
            FaultError: a newer start of this run has taken over, or the folder cannot be written.
        """
        self._save(step, checkpoints.model_only(self._run), STATE[:1], lambda: None)

    def _save(self, step: int, run: Path, kinds: Sequence[str], tidy: Callable[[], None]) -> None:
        self.wait()
        taken = zero.step_count(self._engine)
        assert taken in (None, step), f"Adam has taken {taken} steps, the run {step}"
        folder = self._engine.gang.from_main(partial(self._begin, step, run, kinds))
        parts = self._stage_to_host(kinds)
        failpoint("copied")
        self._pending = self._pool.submit(self._write, step, folder, parts, tidy)

    def wait(self) -> None:
        """Wait until the last save is complete; every rank raises what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def failed(self) -> bool:
        """Whether the last save is known to have failed; `wait` then raises why."""
        pending = self._pending
        return pending is not None and pending.done() and pending.exception() is not None

    def bytes(self) -> int:
        """Return the size of a checkpoint, but for its index and headers (one part in 1000)."""
        return self._bytes

    def _begin(self, step: int, run: Path, kinds: Sequence[str]) -> Path:
        assert self._attempt is not None
        size = self.bytes() * len(kinds) // len(STATE)
        place = checkpoints.home(run)  # may be a link to another disk
        checkpoints.require_space(place, size, f"the checkpoint of step {step} needs")
        try:
            return checkpoints.begin(run, step, self._attempt)
        except OSError as error:
            raise _explained(error, self._run) from None

    def _stage_to_host(self, kinds: Sequence[str]) -> list[ShardData]:
        """Copy what this rank owns to the host, into memory that is kept for the next save."""
        shards = self._saved_shards()
        if self._touched is not None:
            self._touched.result()
        staging = self._reserve()
        parts, used = [], 0
        for shard in shards:
            values = {}
            for kind, view in zip(kinds, zero.state_views(self._engine, shard), strict=False):
                copy = staging.narrow(0, used, shard.length)
                copy_through(self._bounce if view.is_cuda else None, view, copy)
                values[kind] = copy.numpy().view(np.uint8)
                used += shard.length
            parts.append(ShardData(shard.name, shard.shape, "F32", shard.start, values, shard.cut))
        mesh = self._engine.mesh
        return parts + (self._buffers() if mesh.data == mesh.tensor == 0 else [])

    def _saved_shards(self) -> tuple[zero.LocalShard, ...]:
        copied = zero.copies(self._engine)
        return tuple(s for s in zero.local_shards(self._engine) if s.name not in copied)

    def _reserve(self) -> torch.Tensor:
        """Return host memory for what this rank owns; a GPU's leaves through pinned memory.

        All of it pinned would be twice as much at worst: torch rounds to a power of two.
        """
        total = len(STATE) * sum(shard.length for shard in self._saved_shards())
        if self._staging is None or self._staging.numel() < total:
            self._staging = torch.empty((total,), dtype=torch.float32)
        if self._bounce is None and self._engine.gang.device.type == "cuda":
            self._bounce = torch.empty((STAGED // 4,), dtype=torch.float32, pin_memory=True)
        return self._staging

    def _buffers(self) -> list[ShardData]:
        return [
            ShardData(name, tuple(buffer.shape), DTYPES[buffer.dtype], 0, {"value": _raw(buffer)})
            for name, buffer in zero.buffers_of(self._engine).items()
            if buffer.numel()
        ]

    def _write(
        self, step: int, folder: Path, parts: list[ShardData], tidy: Callable[[], None]
    ) -> None:
        """Write this rank's file and agree with the others; runs in the thread.

        Of what tensor ranks hold in common the first writes, and all say what they have.
        """
        rank, mesh = self._background.world.rank, self._engine.mesh
        whole = [part for part in parts if part.cut is None and "master" in part.values]
        common = whole if mesh.tp > 1 else []
        if mesh.tensor > 0:
            parts = [part for part in parts if part.cut is not None]
        slices: dict[str, ShardRef] = {}
        failure: Exception | None = None
        sums: dict[str, int] = {}
        try:
            sums = {part.name: part.sum for part in common}
            slices = write_shards(folder / f"slices_{rank:05d}.safetensors", parts) if parts else {}
        except OSError as error:
            failure = _explained(error, self._run)
        except Exception as error:
            failure = FaultError(f"rank {rank} could not write its part of {folder}: {error!r}")
        failpoint("written")
        kinds = {part.name: (part.shape, part.dtype, tuple(part.values)) for part in parts}
        found = self._background.gather((kinds, slices, failure, sums))
        failpoint("agreed")
        self._background.on_main(partial(self._commit, step, folder, found, tidy))

    def _commit(self, step: int, folder: Path, found: list[Any], tidy: Callable[[], None]) -> None:
        failures = [failure for _, _, failure, _ in found if failure is not None]
        try:
            if failures:
                raise failures[0]
            require_equal_copies(self._engine.mesh, [sums for *_, sums in found])
            assert self._attempt is not None
            checkpoints.commit(folder, self._index(step, found), self._attempt)
        except Exception as error:
            checkpoints.remove(folder)
            raise _explained(error, self._run) if isinstance(error, OSError) else error from None
        tidy()

    def _index(self, step: int, found: list[Any]) -> Index:
        known = {name: kind for kinds, *_ in found for name, kind in kinds.items()}
        tensors = {}
        for name, (shape, dtype, kinds) in sorted(known.items()):
            slices = tuple(written[name] for _, written, *_ in found if name in written)
            if kinds == ("value",):  # of each stage that has such a buffer
                slices = slices[:1]
            tensors[name] = TensorMetadata(shape, dtype, kinds, slices)
        provenance = {
            "attempt": self._attempt.name if self._attempt else None,
            "host": socket.gethostname(),
            "time": time.time(),
            "versions": {name: metadata.version(name) for name in ("torch", "deepspeed")},
        }
        size = self._background.world.size
        return Index(step, size, self._fingerprint, provenance, tensors)


def require_equal_copies(mesh: Mesh, sums: Sequence[Mapping[str, int]]) -> None:
    """Refuse to save where tensor ranks have come to differ in what each of them holds whole.

    Args:
        sums: each rank's sum of its elements of such parameters, by their names.

    Raises:
        FaultError: they differ.
    """
    totals: dict[str, Counter[int]] = {}
    for rank, own in enumerate(sums):
        for name, value in own.items():
            totals.setdefault(name, Counter())[rank % mesh.tp] += value
    for name, by_tensor in totals.items():
        if len({by_tensor[tensor] % 2**64 for tensor in range(mesh.tp)}) > 1:
            raise FaultError(
                f"the copies of {name} on the {mesh.tp} tensor ranks differ, which no step may "
                "make them: nothing is saved of this step"
            )


def copy_through(bounce: torch.Tensor | None, source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy a flat tensor to the host, piece by piece through pinned memory where that is given."""
    size = source.numel() if bounce is None else bounce.numel()
    for first in range(0, source.numel(), max(1, size)):
        part = source[first : first + size]
        into = target[first : first + size]
        if bounce is None:
            into.copy_(part)
        else:
            into.copy_(bounce[: part.numel()].copy_(part))


def _raw(tensor: torch.Tensor) -> Any:
    copy = tensor.detach().to("cpu", copy=True).contiguous().reshape(-1)
    return copy.view(torch.uint8).numpy()


def _explained(error: OSError, run: Path) -> CheckpointError | FaultError:
    reason = error.strerror or str(error)
    if error.errno in FULL:
        return CheckpointError(
            f"a checkpoint could not be written to {run} ({reason}): free some space, lower "
            "--keep, or give a --run-dir on a larger disk"
        )
    return FaultError(f"a checkpoint could not be written to {run}: {reason}")
