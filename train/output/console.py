"""What a run says while it runs: numbered stages, a line per step, a bar on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from tqdm import tqdm

from train.data.blocks import Progress
from train.output.record import StepRecord
from train.text import duration, format_count, shown, terminal_width

STAGES = 8
QUIET = 10.0  # seconds between two lines of long work where there is no terminal
FOLLOWED = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
T = TypeVar("T")


def step_line(record: StepRecord, total: int, epoch: float, left: float, width: int | None) -> str:
    """Return a step in one line: all that is known of it, or what a terminal's `width` holds."""
    place, loss = f"[Step {record.step}/{total}]", f"Loss: {record.loss:.6f}"
    ends = f"Left: {duration(left)}"
    whole = [
        "INFO", place, loss, f"Duration: {record.seconds:.2f}",
        f"Throughput: {record.tokens_per_s:.2f} tokens/sec",
    ]  # fmt: skip
    more = [f"LR: {record.lr:.3g}", f"Grad norm: {record.grad_norm:.3f}", f"Epoch: {epoch:.2f}"]
    more += [] if record.mfu is None else [f"MFU: {record.mfu:.1%}"]
    if width is None:
        return _row([*whole, *more, ends])
    short = [place, loss, f"{record.seconds:.2f} s", f"{record.tokens_per_s:.0f} tokens/s"]
    parts = whole if len(_row([*whole, ends])) < width else short
    for part in (more[2], *more[:2], *more[3:]):
        if len(_row([*parts, part, ends])) < width:
            parts = [*parts, part]
    return _row([*parts, ends])


def _row(parts: Sequence[str]) -> str:
    return "| " + " | ".join(parts) + " |"


@dataclass(frozen=True)
class Console:
    """Rank 0's voice; on other ranks every method is silent. `log` keeps a copy of each line."""

    speaks: bool
    log: Callable[[str], None] = lambda line: None

    @property
    def colour(self) -> bool:
        """Whether lines go to a terminal."""
        return sys.stdout.isatty()

    def say(self, text: str, *, whole: bool = False) -> None:
        """Print one information line; on a terminal between words, unless it must stay `whole`."""
        self._line(f"[info] {text}", whole=whole)

    def stage(self, number: int, text: str) -> None:
        """Print which of the run's eight stages begins."""
        self.say(f"[{number}/{STAGES}] {text}...")

    def step(self, record: StepRecord, total: int, epoch: float, left: float) -> None:
        """Print one step in the shape `| INFO | [Step i/N] | Loss: … |`.

        Args:
            epoch: how often the data has been gone through; left: seconds to the last step.
        """
        self._line(step_line(record, total, epoch, left, terminal_width() if self.colour else None))

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
        with tqdm(total=1.0, bar_format=FOLLOWED, disable=not shown, leave=False) as bar:
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

    def _line(self, text: str, *, whole: bool = True) -> None:
        if self.speaks:
            with tqdm.external_write_mode(file=sys.stdout):
                print(text if whole else shown(text, sys.stdout), flush=True)
            self.log(text)
