"""Let a trained model speak: it continues a prompt as it stands on the ranks, whatever the plan."""

from __future__ import annotations

import time
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from train.engine.step import Engine

MOST, PATIENCE = 64, 20.0  # tokens, seconds


def answer(engine: Engine, prompt: NDArray[np.int32], stops: Collection[int]) -> list[int]:
    """Continue the prompt (T,) with the likeliest tokens; every rank must ask.

    Nothing is kept from one token to the next, which is slow and needs no second form of the model.

    Returns:
        The new ids, up to and without one of `stops`; not all where that takes long.
    """
    ids = prompt.astype(np.int64)
    end = engine.gang.from_main(lambda: time.monotonic() + PATIENCE)
    found: list[int] = []
    while len(found) < MOST and not engine.agree(wish=late(engine, end)):
        token = engine.next_token(ids)
        if token in stops:
            break
        found.append(token)
        ids = np.append(ids, token)
    return found


def late(engine: Engine, end: float) -> bool:
    """Whether rank 0's clock is beyond `end`; no other rank's counts."""
    return engine.gang.world.is_main and time.monotonic() > end
