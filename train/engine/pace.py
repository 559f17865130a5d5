"""How fast this rank's products are, timed without what they wait for.

In a step that is watched, the forward passes of the linear modules are timed one by one. The marks
stand inside DeepSpeed's own: ZeRO-3 has gathered a module's weights before the first, and sends
gradients, exchanges keys and updates outside of them. So a rank that waits for another does not
look slow, and whatever slows a rank itself (heat, a power limit, a neighbour) does. What a module
did is counted in FLOP, not in tokens: the head sees fewer of them than a layer does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from train.planning.balance import Pace, is_watched, usual

# Rows below which a product waits for its weights, so that its time says nothing of its rate.
FEWEST_ROWS = 64


@dataclass
class Stopwatch:
    """Times the linear modules of `module` on `device`; `paces` are of the steps watched so far."""

    module: torch.nn.Module
    device: torch.device
    paces: list[Pace] = field(default_factory=list)
    _began: Any = None
    _spans: list[tuple[float, Any, Any]] = field(default_factory=list)

    @contextmanager
    def watching(self, step: int) -> Iterator[None]:
        """Time what runs meanwhile, if step `step` is watched: a forward pass."""
        handles = []
        for module in self.module.modules() if is_watched(step) else ():
            if isinstance(module, (torch.nn.Linear, Conv1D)):
                end = partial(self._end, getattr(module.weight, "ds_numel", module.weight.numel()))
                handles.append(module.register_forward_pre_hook(self._begin))
                handles.append(module.register_forward_hook(end, prepend=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def note(self) -> None:
        """Add up what was timed in a step that is over; its work on the device must be done."""
        if self._spans:
            spent = sum(self._seconds(began, ended) for _, began, ended in self._spans)
            work = sum(work for work, _, _ in self._spans)
            self.paces.append(Pace(work / spent if spent else 0.0, spent))
            self._spans.clear()

    def take(self) -> Pace:
        """Return the usual pace of the steps watched since the last call."""
        found = usual(self.paces)
        self.paces.clear()
        return found

    def _begin(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        self._began = self._now()

    def _end(
        self, elements: int, module: torch.nn.Module, inputs: tuple[Any, ...], output: Any
    ) -> None:
        rows = output.numel() // output.shape[-1]
        if rows >= FEWEST_ROWS:
            self._spans.append((2.0 * rows * elements, self._began, self._now()))

    def _now(self) -> Any:
        """Return a mark in the device's own order of work; on a CPU the time, in seconds."""
        if self.device.type != "cuda":
            return time.perf_counter()
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark

    def _seconds(self, began: Any, ended: Any) -> float:
        if self.device.type != "cuda":
            return float(ended - began)
        return float(began.elapsed_time(ended)) / 1000
