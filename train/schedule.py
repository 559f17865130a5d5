"""The learning rate as a pure function of the step, so that no GPU count and no resume moves it."""

from __future__ import annotations

import math

from train.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, total: int) -> float:
    """Return the rate of step `step` (from 0) of a run of `total` steps.

    A linear rise over the warm-up reaches the full rate at its last step; after it the rate stays,
    or falls to nothing at the end along a line or half a cosine.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    if config.lr_schedule == "linear":
        return config.lr * (1 - done)
    if config.lr_schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    return config.lr
