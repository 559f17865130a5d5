"""What the model at the start makes of pairs of answers: computed once, before the first step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from train.data.feed import Placement, whole_split
from train.data.pairs import PairedSplit
from train.engine.step import Engine


def margins(engine: Engine, split: PairedSplit, batch: int, place: Placement) -> NDArray[Any]:
    """Return the margin (pairs,) of every pair of a split by the model as it stands.

    Every rank must ask, and gets all of them; `batch` pairs are packed at a time.
    """
    found = torch.zeros(len(split), dtype=torch.float64, device=engine.gang.device)
    for micros in whole_split(split, batch, place):
        for micro in micros:
            starts = np.cumsum([0, *micro.lengths[:-1]])[0::2]
            numbers = torch.from_numpy(micro.samples[starts]).to(found.device)
            own = engine.margins(micro)
            found[numbers[: len(own)]] = own
    summed: NDArray[Any] = engine.gang.sum(found).cpu().numpy()
    return summed
