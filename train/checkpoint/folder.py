"""Checkpoints as folders: how one is committed, found, judged and removed; no torch is needed.

    checkpoints/step_00000200/
        slices_00000.safetensors …   a file per rank that wrote: flat slices of global tensors
        index.json                   every tensor's shape and slices, the step, what it belongs to
        COMPLETE                     the checksum of index.json, written last

A folder without COMPLETE does not exist. Nothing in a checkpoint can be executed: its files are
safetensors and JSON, and no other file in the folder is opened.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from train.checkpoint.failpoint import failpoint
from train.checkpoint.index import Index, read_index
from train.checkpoint.slices import Reader
from train.errors import CheckpointError, FaultError
from train.text import format_bytes

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk without room
_NAME = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True)
class CheckpointStatus:
    """A checkpoint as it is listed, and its size in bytes; `error`: what is wrong, if anything."""

    path: Path
    step: int
    bytes: int
    world_size: int | None
    error: str | None


def home(run: Path) -> Path:
    """Return the folder of a run's checkpoints."""
    return run / "checkpoints"


def complete(run: Path) -> tuple[Path, ...]:
    """Return the run's complete checkpoints, the newest first."""
    found = [path for path in home(run).glob("step_*") if _NAME.fullmatch(path.name)]
    done = [path for path in found if (path / "COMPLETE").is_file()]
    return tuple(sorted(done, key=step_of, reverse=True))


def step_of(folder: Path) -> int:
    """Return the step that a checkpoint's folder is named after."""
    named = _NAME.fullmatch(folder.name)
    assert named is not None, folder
    return int(named[1])


def begin(run: Path, step: int, attempt: Path) -> Path:
    """Make the folder that a checkpoint is written to before it is complete.

    Raises:
        FaultError: a newer start of this run has taken over.
        OSError: the folder cannot be made.
    """
    require_newest(attempt)
    folder = home(run) / f"step_{step:08d}.{attempt.name}.incomplete"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    failpoint("begun")
    return folder


def commit(partial: Path, index: Index, attempt: Path) -> Path:
    """Turn a folder whose slices are on disk into a checkpoint; return its place.

    Raises:
        FaultError: a newer start of this run has taken over, or elements are missing.
        OSError: something cannot be written.
    """
    for name, entry in index.tensors.items():
        if entry.held != entry.elements:
            raise FaultError(
                f"the ranks have written {entry.held} of the {entry.elements} elements of {name}, "
                f"so the checkpoint of step {index.step} is not kept"
            )
    text = index.to_json()
    _write(partial / "index.json", text)
    _sync(partial)
    failpoint("indexed")
    require_newest(attempt)
    folder = partial.with_name(f"step_{index.step:08d}")
    remove(folder)
    partial.rename(folder)
    _sync(folder.parent)
    failpoint("renamed")
    _write(folder / "COMPLETE", xxhash.xxh3_64_hexdigest(text.encode()) + "\n")
    _sync(folder)
    failpoint("completed")
    return folder


def require_newest(attempt: Path) -> None:
    """Refuse to write for a start that is no longer the run's newest.

    Raises:
        FaultError: a newer start of this run has taken over.
    """
    newer = attempt.with_name(f"{int(attempt.name) + 1:04d}")
    if newer.exists():
        raise FaultError(
            f"another start of this run has taken over ({newer}), so this one, {attempt.name}, "
            "writes nothing more: let only one start at a time use a run folder"
        )


def model_only(run: Path) -> Path:
    """Return the folder of what a model alone is written from; laid out as a run of its own."""
    return run / "model-only"


def prune(run: Path, keep: int, best: int | None = None) -> None:
    """Remove all but the newest `keep` checkpoints and that of step `best`, and damaged ones."""
    for folder in complete(run)[keep:]:
        if step_of(folder) != best:
            remove(folder)
    for folder in home(run).glob("step_*.damaged"):
        shutil.rmtree(folder, ignore_errors=True)
    failpoint("pruned")


def remove(folder: Path) -> None:
    """Remove a checkpoint: it stops existing before its files go."""
    (folder / "COMPLETE").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def tidy(run: Path, start: int) -> None:
    """Before training goes on from step `start`: clear what no start of this run will use.

    Folders that were never completed go; checkpoints of later steps, which were found damaged, are
    set aside as `.damaged` until the next one is complete.
    """
    for folder in home(run).glob("step_*.incomplete"):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in home(run).glob("step_*"):
        if _NAME.fullmatch(folder.name) and step_of(folder) > start:
            aside = folder.with_name(folder.name + ".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)


def set_aside(run: Path, attempt: Path) -> Path | None:
    """Move all checkpoints out of the way of a run that starts over; return where they are.

    With them goes a copy of metrics.jsonl, of which the run that starts over drops every step.
    None: there is neither.
    """
    metrics = run / "metrics.jsonl"
    measured = metrics.is_file() and metrics.stat().st_size > 0
    if not measured and not complete(run):
        return None
    place = run / f"checkpoints-before-{attempt.name}"
    if home(run).is_dir():
        home(run).rename(place)
    if measured:
        place.mkdir(exist_ok=True)
        shutil.copy(metrics, place)
    return place


def verify(folder: Path) -> Index:
    """Read every byte of a checkpoint and return its index.

    Raises:
        CheckpointError: it is damaged; the text says how.
    """
    index = read_index(folder)
    reader = Reader(folder, index.tensors)
    try:
        for name in index.tensors:
            reader.verify(name)
    finally:
        reader.close()
    return index


def survey(run: Path) -> Iterator[CheckpointStatus]:
    """Yield a run's checkpoints, the oldest first, each with every byte of it verified."""
    for folder in reversed(complete(run)):
        size = sum(path.stat().st_size for path in folder.iterdir())
        try:
            index = verify(folder)
        except CheckpointError as error:
            yield CheckpointStatus(folder, step_of(folder), size, None, str(error))
        else:
            yield CheckpointStatus(folder, index.step, size, index.world_size, None)


def require_space(path: Path, needed: int, purpose: str) -> int:
    """Return the free bytes of the file system that `path` will be on, if they suffice.

    Raises:
        CheckpointError: fewer than `needed` bytes are free.
    """
    there = path
    while not there.exists():
        there = there.parent
    status = os.statvfs(there)
    free = status.f_bavail * status.f_frsize
    if free < needed:
        raise CheckpointError(
            f"{purpose} {format_bytes(needed)}, but only {format_bytes(free)} are free in {there}: "
            "free some space, lower --keep, or give a --run-dir on a larger disk"
        )
    return free


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Force a folder's names to disk."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
