"""What a run says while it runs: numbered stages, a line per step, a bar on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from train.output.record import StepRecord

STAGES = 8


@dataclass(frozen=True)
class Console:
    """Rank 0's voice; on other ranks every method is silent. `log` keeps a copy of each line."""

    speaks: bool
    log: Callable[[str], None] = lambda line: None

    @property
    def colour(self) -> bool:
        """Whether lines go to a terminal."""
        return sys.stdout.isatty()

    def say(self, text: str) -> None:
        """Print one information line."""
        self._line(f"[info] {text}")

    def stage(self, number: int, text: str) -> None:
        """Print which of the run's eight stages begins."""
        self.say(f"[{number}/{STAGES}] {text}...")

    def step(self, record: StepRecord, total: int) -> None:
        """Print one step in the shape `| INFO | [Step i/N] | Loss: … |`."""
        parts = [
            "INFO",
            f"[Step {record.step}/{total}]",
            f"Loss: {record.loss:.6f}",
            f"Duration: {record.seconds:.2f}",
            f"Throughput: {record.tokens_per_s:.2f} tokens/sec",
            f"LR: {record.lr:.3g}",
            f"Grad norm: {record.grad_norm:.3f}",
        ]
        if record.mfu is not None:
            parts.append(f"MFU: {record.mfu:.1%}")
        self._line("| " + " | ".join(parts) + " |")

    def bar(self, start: int, total: int) -> Any:
        """Return a progress bar with the remaining time; invisible where output is no terminal."""
        shown = self.speaks and sys.stderr.isatty()
        return tqdm(total=total, initial=start, unit="step", disable=not shown, dynamic_ncols=True)

    def _line(self, text: str) -> None:
        if self.speaks:
            with tqdm.external_write_mode(file=sys.stdout):
                print(text, flush=True)
            self.log(text)
