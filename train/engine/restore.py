"""Setting an engine to a checkpoint that any number of ranks has written."""

from __future__ import annotations

from pathlib import Path

import torch

from train.checkpoint.cut import Cut
from train.checkpoint.index import Index
from train.checkpoint.slices import STATE, Reader
from train.engine import zero
from train.engine.step import Engine
from train.errors import CheckpointError, FaultError


def restore(engine: Engine, folder: Path, index: Index) -> int:
    """Set the engine's state to a checkpoint's; return the bytes read by all ranks together.

    Each rank reads, and verifies, what it owns; together they read everything.

    Raises:
        CheckpointError: it is damaged; FaultError: it cannot be read. On every rank alike; the
            engine's state is then undefined.
    """
    zero.init_state(engine, index.step)
    reader = Reader(folder, index.tensors)
    failure: Exception | None = None
    try:
        for shard in zero.local_shards(engine):
            for kind, view in zip(STATE, zero.state_views(engine, shard), strict=True):
                _fill(reader, (shard.name, kind), shard.start, view, shard.cut)
        for name, buffer in zero.buffers_of(engine).items():
            values = buffer.detach().reshape(-1).cpu()
            _fill(reader, (name, "value"), 0, values)
            buffer.copy_(values.view(buffer.shape))
    except (CheckpointError, FaultError) as error:
        failure = error
    finally:
        reader.close()
    answers = engine.gang.gather((failure, reader.bytes))
    for found, _ in answers:
        if found is not None:
            raise found
    with torch.no_grad():
        zero.refresh_low_precision(engine)
    return sum(size for _, size in answers)


def _fill(
    reader: Reader, named: tuple[str, str], start: int, view: torch.Tensor, cut: Cut | None = None
) -> None:
    """Fill a flat view with the elements, of a whole tensor or its cut, from `start` on."""
    for first, raw in reader.read(*named, start, start + view.numel(), cut):
        values = torch.from_numpy(raw).view(view.dtype)
        view[first - start : first - start + values.numel()].copy_(values)
