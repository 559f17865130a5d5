"""What a run says while it runs: numbered stages, a line per step, a bar on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from tqdm import tqdm

from train.data.blocks import Progress
from train.output.record import StepRecord
from train.text import duration, format_count

STAGES = 8
QUIET = 10.0  # seconds between two lines of long work where there is no terminal
FOLLOWED = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
T = TypeVar("T")


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

    def follow(self, work: Generator[Progress, None, T], every: float = QUIET) -> T:
        """Do work, and show how far it is where that takes long; return what it returns.

        On a terminal a bar, with the rate and the time left; elsewhere a line `every` so often.
        """
        shown, what = self.speaks and sys.stderr.isatty(), ""
        began = told = time.monotonic()
        with tqdm(total=1.0, bar_format=FOLLOWED, disable=not shown, delay=1, leave=False) as bar:
            while True:
                try:
                    found = next(work)
                except StopIteration as end:
                    return cast(T, end.value)
                if found.what != what:
                    what = found.what
                    bar.reset()
                    bar.set_description_str(f"tokenizing {what}", refresh=False)
                    began = told = time.monotonic()
                now = time.monotonic()
                rate = f"{format_count(found.tokens / max(now - began, 1e-9))} tokens/s"
                bar.set_postfix_str(rate, refresh=False)
                bar.update(found.share - bar.n)
                if not shown and now - told >= every:
                    told, left = now, (now - began) * (1 / max(found.share, 1e-9) - 1)
                    self.say(f"tokenizing {what}: {found.share:.0%}, {rate}, {duration(left)} left")

    def _line(self, text: str) -> None:
        if self.speaks:
            with tqdm.external_write_mode(file=sys.stdout):
                print(text, flush=True)
            self.log(text)
