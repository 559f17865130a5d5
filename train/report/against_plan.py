"""Runs against their plans, and against fewer GPUs: a word on why, speed-up with the ideal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from train.report.runs import Run, curves

CLOSE = 0.1  # of the prediction: what is called as planned
UNEVEN = 1.5  # the tenth slowest step over the tenth fastest: something else ran, too


@dataclass(frozen=True)
class Against:
    """Predicted against measured: bytes or seconds, and why they differ, in words."""

    predicted: float
    measured: float
    why: str

    @property
    def ratio(self) -> float | None:
        """Measured over predicted; None where nothing was predicted."""
        return self.measured / self.predicted if self.predicted else None


def memory_of(run: Run) -> Against:
    """Compare the peak of a device with the plan's, without the reserve that no counter sees."""
    parts = run.predicted("memory")
    predicted = parts.get("total", 0.0) - parts.get("reserve", 0.0)
    measured = float(max(step["peak_bytes"] for step in run.steps))
    ratio = measured / predicted if predicted else None
    if ratio is None:
        why = "there is no plan in its folder"
    elif abs(ratio - 1) <= CLOSE:
        why = "as planned"
    elif run.on_cpu:
        why = (
            "of a CPU rank the growth of the whole process is measured, with libraries' buffers, "
            "of which a plan knows nothing"
        )
    elif ratio < 1:
        why = "the steps so far were not the fullest that the plan must hold"
    else:
        why = "more than planned: please report it, with this run's plan.json"
    return Against(predicted, measured, why)


def time_of(run: Run) -> Against:
    """Compare the median step with the plan's, on the last start's number of GPUs."""
    last = run.steps[-1]["world_size"]
    steps = [float(s["seconds"]) for s in settled(run) if s["world_size"] == last]
    predicted, measured = run.predicted("time").get("total", 0.0), median(steps)
    ratio = measured / predicted if predicted else None
    spread = spread_of(run)
    if ratio is None:
        why = "there is no plan in its folder"
    elif abs(ratio - 1) <= CLOSE:
        why = "as planned"
    elif spread > UNEVEN and ratio > 1:
        why = f"some steps take {spread:.1f} times as long a token as others: something else runs"
    elif run.on_cpu:
        why = "a CPU's rate is a rough guess; 'anyrank plan --calibrate' measures it"
    elif ratio > 1:
        why = "slower than the table's rates; 'anyrank plan --calibrate' measures this GPU's"
    else:
        why = "faster than the table's rates; 'anyrank plan --calibrate' measures this GPU's"
    return Against(predicted, measured, why)


def settled(run: Run) -> Sequence[Mapping[str, Any]]:
    """Return a run's steps but the first of each start, which is slow; all, if the last is one."""
    begins = {start.steps[0] for start in run.starts if start.steps}
    found = [step for step in run.steps if step["step"] not in begins]
    same = run.steps[-1]["world_size"] == found[-1]["world_size"] if found else False
    return found if same else run.steps


def spread_of(run: Run) -> float:
    """Return how unevenly fast a run's steps are, per token: the ninth decile over the first."""
    rates = [s["seconds"] / s["tokens"] for s in settled(run)]
    if len(rates) < 10:
        return 1.0
    tenths = quantiles(rates, n=10)
    return float(tenths[-1] / tenths[0])


@dataclass(frozen=True)
class Speed:
    """Real tokens per second on so many GPUs, against the fewest of the same curve.

    `spread`: how unevenly fast the run's steps are, which a busy machine makes them.
    """

    run: str
    gpus: int
    tokens_per_s: float
    times: float
    ideal: float
    spread: float


def speeds(runs: Sequence[Run]) -> list[list[Speed]]:
    """Return, of each curve that ran on more than one number of GPUs, the speed on each."""
    found = []
    for group in curves(runs):
        rates = [(run, gpus, rate) for run in group for gpus, rate in rates_of(run).items()]
        counts = {gpus for _, gpus, _ in rates}
        if len(counts) < 2:
            continue
        least = min(counts)
        base = max(rate for _, gpus, rate in rates if gpus == least)
        speed = [Speed(run.name, n, rate, rate / base, n / least, spread_of(run))
                 for run, n, rate in rates]  # fmt: skip
        found.append(sorted(speed, key=lambda one: (one.gpus, -one.tokens_per_s)))
    return found


def rates_of(run: Run) -> dict[int, float]:
    """Return the median of tokens per second by the number of GPUs, without starts' first steps."""
    steps = settled(run)
    counts = dict.fromkeys(int(step["world_size"]) for step in steps)
    return {
        n: median(float(s["tokens_per_s"]) for s in steps if s["world_size"] == n) for n in counts
    }
