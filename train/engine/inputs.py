"""A micro-batch as the tensors that a model's forward takes, packed in one row or padded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from train.data.batch import MicroBatch
from train.engine.replica import Replica, SharedRow


@dataclass(frozen=True)
class Inputs:
    """Arguments of a forward, and where in its logits the targets are.

    `samples` and `positions` name every token that the forward sees, int64, flattened;
    `where` indexes the tokens that carry loss, `targets` what each should predict, `texts` which of
    the row's samples or stretches each is of, all (K,). `reference` as in `MicroBatch`.
    """

    arguments: dict[str, Any]
    samples: torch.Tensor
    positions: torch.Tensor
    where: torch.Tensor
    targets: torch.Tensor
    texts: torch.Tensor
    reference: torch.Tensor | None = None


def packed_inputs(
    micro: MicroBatch, device: torch.device, replica: Replica | None = None
) -> Inputs:
    """One row of T tokens; the attention is told the boundaries, and who shares the row."""
    bounds = torch.tensor([0, *accumulate(micro.lengths)], dtype=torch.int32)
    positions = _tensor(micro.positions, device)
    arguments = {
        "input_ids": _tensor(micro.tokens, device)[None],
        "position_ids": positions[None],
        "cu_seq_lens_q": bounds.to(device, non_blocking=True),
        "max_length_q": max(micro.lengths),
        "segments": tuple(bounds.tolist()),
    }
    if replica is not None and micro.division:
        arguments["shared_row"] = SharedRow(replica, micro.division, device)
    texts = np.repeat(np.arange(len(micro.lengths)), micro.lengths)
    found = _inputs(arguments, micro.samples, micro.positions, micro.labels, texts, device)
    return _with_reference(found, micro, device)


def padded_inputs(micro: MicroBatch, device: torch.device, width: int = 0) -> Inputs:
    """One row per sample, padded on the right to the longest or to `width`, with a mask."""
    rows, width = len(micro.lengths), max(width, *micro.lengths)
    real = np.arange(width)[None, :] < np.array(micro.lengths)[:, None]

    def spread(values: np.ndarray, filler: int) -> np.ndarray:
        grid = np.full((rows, width), filler, dtype=np.int64)
        grid[real] = values
        return grid

    positions = np.broadcast_to(np.arange(width), (rows, width))
    arguments = {
        "input_ids": _tensor(spread(micro.tokens, 0), device),
        "attention_mask": _tensor(real.astype(np.int64), device),
        "position_ids": _tensor(np.ascontiguousarray(positions), device),
    }
    samples, labels = spread(micro.samples, -1), spread(micro.labels, -100)
    texts = np.repeat(np.arange(rows), width)
    found = _inputs(arguments, samples.ravel(), positions.ravel(), labels.ravel(), texts, device)
    return _with_reference(found, micro, device)


def _with_reference(found: Inputs, micro: MicroBatch, device: torch.device) -> Inputs:
    if micro.reference is None:
        return found
    return replace(found, reference=torch.from_numpy(micro.reference).to(device))


def _inputs(
    arguments: dict[str, Any],
    samples: np.ndarray,
    positions: np.ndarray,
    labels: np.ndarray,
    texts: np.ndarray,
    device: torch.device,
) -> Inputs:
    where = np.flatnonzero(labels >= 0)
    return Inputs(
        arguments,
        _tensor(samples, device),
        _tensor(positions, device),
        _tensor(where, device),
        _tensor(labels[where], device),
        _tensor(texts[where], device),
    )


def _tensor(values: np.ndarray, device: torch.device) -> torch.Tensor:
    whole = torch.from_numpy(np.array(values, dtype=np.int64))
    if device.type == "cuda":
        whole = whole.pin_memory()
    return whole.to(device, non_blocking=True)
