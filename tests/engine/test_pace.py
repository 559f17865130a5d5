"""What the stopwatch counts, on real modules."""

from __future__ import annotations

import time

import pytest
import torch

from train.engine.pace import Stopwatch
from train.planning.balance import Pace


class Lasting(torch.nn.Linear):
    """A product that takes 10 ms."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        time.sleep(0.01)
        return super().forward(rows)


def watched(module: torch.nn.Module, rows: int) -> Pace:
    """Return the pace of five steps of which three are watched."""
    watch = Stopwatch(module, torch.device("cpu"))
    for step in (0, 3, 7, 8, 11):
        with watch.watching(step):
            module(torch.zeros(rows, 8))
        watch.note()
    return watch.take()


def test_products_are_timed_and_nothing_else_and_only_in_steps_that_are_watched():
    class Waiting(torch.nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            time.sleep(0.15)
            return rows

    module = torch.nn.Sequential(Lasting(8, 16), Waiting(), Lasting(16, 4))
    module.register_forward_pre_hook(lambda *_: time.sleep(0.15))
    module[2].register_forward_pre_hook(lambda *_: time.sleep(0.15))  # as ZeRO-3's gather
    module[2].register_forward_hook(lambda *_: time.sleep(0.15))  # as ZeRO-3's release
    found = watched(module, 100)
    assert 0.02 <= found.seconds < 0.15
    assert found.rate == pytest.approx(2 * 100 * (8 * 16 + 16 * 4) / found.seconds, rel=0.5)
    assert all(not layer._forward_pre_hooks for layer in module[:1])


def test_too_few_rows_say_nothing():
    assert watched(torch.nn.Sequential(Lasting(8, 8)), 1) == Pace()
