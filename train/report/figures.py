"""Plots of runs, drawn with matplotlib, which is imported only here and only when asked for.

They are as wide as a phone can show without making their text too small, and take the colour of
their text from the page, so that they can be read on a dark one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from itertools import pairwise, zip_longest
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from train.report.against_plan import speeds, time_of
from train.report.runs import Run, limit_of, ranks
from train.text import GIB

COLORS = ("#2b83ba", "#e07a1f", "#2fa36a", "#a566c4", "#d0507f", "#7b8b95")
MEMORY = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "reserve")
TIME = ("compute", "communication", "pipeline", "offload")
PARTS = ("#1b3a57", "#1b6ca8", "#6fb1d6", "#e07a1f", "#f2b872", "#8d99a6", "#cfd6dd")
FLOOR = 1e-9  # the smallest difference drawn on a logarithmic axis
WIDE = 5.2  # inches: at 72 points each about a phone's pixels
INK = "#010203"  # stands for the page's own colour of text
LOST = "#d0507f"
SETTINGS: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "anyrank", "font.size": 10,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color",
                     "ytick.color"), INK),
}  # fmt: skip

Draw = Callable[[Sequence[Run]], Figure]


def draw_all(runs: Sequence[Run], folder: Path) -> dict[str, Path]:
    """Write every figure that has something to show as `<name>.svg`; return title -> file."""
    found = {}
    for name, (title, draw) in FIGURES.items():
        with plt.rc_context(SETTINGS):
            figure = draw(runs)
        if figure.axes:
            found[title] = folder / f"{name}.svg"
            written = StringIO()
            with plt.rc_context(SETTINGS):
                figure.savefig(written, format="svg", bbox_inches="tight", transparent=True,
                               metadata={"Date": None})  # fmt: skip
            found[title].write_text(written.getvalue().replace(INK, "currentColor"), "utf-8")
        plt.close(figure)
    return found


def losses(runs: Sequence[Run]) -> Figure:
    """All losses over one another, first widest, and below them how far each is from the first."""
    shape: dict[str, Any] = {"height_ratios": (3, 1)} if len(runs) > 1 else {}
    rows = 2 if len(runs) > 1 else 1
    figure, axes = plt.subplots(
        rows, sharex=True, figsize=(WIDE, 2.4 + 1.8 * rows), squeeze=False, gridspec_kw=shape
    )
    top = axes[0][0]
    for number, run in enumerate(runs):
        place = (len(runs) - 1 - number) / max(1, len(runs) - 1)
        top.plot(
            [step["step"] for step in run.steps], [step["loss"] for step in run.steps],
            color=_color(number), linewidth=1.4 + 5 * place, alpha=0.45 if place else 1.0,
            label=_label(run), solid_capstyle="round",
        )  # fmt: skip
        if run.evals:
            top.plot(*zip(*((e["step"], e["eval_loss"]) for e in run.evals), strict=True), "D",
                     color=_color(number), markersize=4 + 4 * place, alpha=0.7)  # fmt: skip
        _resumes(top, run, _color(number))
    _finish(top, "loss (nats per token)")
    if len(runs) > 1:
        _differences(axes[1][0], runs)
    axes[-1][0].set_xlabel("optimizer step  (diamond: evaluation; dotted: resumed here)")
    return figure


def _resumes(axis: Axes, run: Run, color: str) -> None:
    """Mark where a run went on after it had ended early, and on how many ranks.

    Each mark's words stand below those of the marks before, and on that side where there is room.
    """
    for before, after in pairwise(run.starts):
        if before.steps and after.steps:
            place = after.steps[0] - 0.5
            axis.axvline(place, color=color, linestyle=":", linewidth=1.4)
            text = f" {run.name}: {before.gpus} → {after.gpus} ranks after step {before.steps[1]} "
            if not run.lossless(after):
                text = f" {run.name}: step {before.steps[1]} on {before.gpus} ranks, lost; \n"
                text += f" resumed from step {after.steps[0] - 1} on {after.gpus} "
            above = sum(1 + other.get_text().count("\n") for other in axis.texts)
            late = place > 0.6 * run.steps[-1]["step"]
            axis.text(place, 0.97 - 0.07 * (above % 12), text, fontsize=9, color=color, va="top",
                      ha="right" if late else "left",
                      transform=axis.get_xaxis_transform())  # fmt: skip


def _differences(axis: Axes, runs: Sequence[Run]) -> None:
    base = {step["step"]: step["loss"] for step in runs[0].steps}
    for number, run in enumerate(runs[1:], 1):
        pairs = [(s["step"], abs(s["loss"] / base[s["step"]] - 1)) for s in run.steps
                 if base.get(s["step"])]  # fmt: skip
        axis.plot([step for step, _ in pairs], [max(size, FLOOR) for _, size in pairs], ".-",
                  color=_color(number), linewidth=1, markersize=4)  # fmt: skip
    limit = limit_of(runs)
    axis.axhline(limit, color=LOST, linestyle="--", linewidth=1)
    axis.text(0.995, limit, f"promised {limit:.0e} ", transform=axis.get_yaxis_transform(),
              ha="right", va="bottom", fontsize=9, color=LOST)  # fmt: skip
    axis.set_yscale("log")
    axis.set_ylim(FLOOR / 2, max(limit, axis.get_ylim()[1]) * 8)
    _finish(axis, f"relative difference\nto {runs[0].name}", legend=False)


def speed(runs: Sequence[Run]) -> Figure:
    """Real tokens per second of every step, and model FLOP utilisation where it is known."""
    known = any(step.get("mfu") is not None for run in runs for step in run.steps)
    rows = 2 if known else 1
    figure, axes = plt.subplots(rows, figsize=(WIDE, 0.6 + 2.6 * rows), squeeze=False, sharex=True)
    for axis, key, name in zip(
        axes[:, 0], ("tokens_per_s", "mfu"), ("real tokens per second", "MFU (%)"), strict=False
    ):
        for number, run in enumerate(runs):
            scale = 100 if key == "mfu" else 1
            points = [(s["step"], s[key] * scale) for s in run.steps if s.get(key) is not None]
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            axis.plot(steps, values, color=_color(number), linewidth=0.7, alpha=0.35)
            axis.plot(steps, smoothed(values), color=_color(number), label=_label(run),
                      linewidth=2)  # fmt: skip
        axis.set_ylim(bottom=0)
        _finish(axis, name, legend=axis is axes[0][0])
    axes[-1][0].set_xlabel("optimizer step  (thin: each step; thick: median of its neighbours)")
    return figure


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the median around each value, over a fifteenth of all but five at least."""
    half = max(2, len(values) // 30)
    return [median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def speed_up(runs: Sequence[Run]) -> Figure:
    """How many times as fast more ranks are, of every curve that was run on several counts."""
    found = speeds(runs)
    figure, axis = plt.subplots(figsize=(WIDE, 3.6))
    if not found:
        axis.remove()
        return figure
    for number, group in enumerate(found):
        best = {one.gpus: one.times for one in reversed(group)}  # of each count first in the group
        axis.plot(sorted(best), [best[n] for n in sorted(best)], color=_color(number),
                  label=f"measured, over {ranks(group[0].gpus)}")  # fmt: skip
        axis.plot([one.gpus for one in group], [one.times for one in group], "o",
                  color=_color(number))  # fmt: skip
        ends = [group[0], group[-1]]
        axis.plot([one.gpus for one in ends], [one.ideal for one in ends], "--",
                  color=_color(number), alpha=0.6, label="ideal")  # fmt: skip
        for one in group:
            axis.annotate(f"{one.times:.2f}", (one.gpus, one.times), (5, -12),
                          textcoords="offset points", fontsize=9)  # fmt: skip
    axis.set_ylim(bottom=0)
    axis.set_xlabel("ranks")
    _finish(axis, "times as fast")
    return figure


def memory(runs: Sequence[Run]) -> Figure:
    """Peak memory of a device: predicted part by part, and measured."""
    parts = [run.predicted("memory") for run in runs]
    measured = [float(max(step["peak_bytes"] for step in run.steps)) for run in runs]
    unit, name = (GIB, "GiB") if max(measured) >= GIB else (GIB / 1024, "MiB")
    return _bars(runs, parts, MEMORY, measured, unit, f"{name} per device")


def step_time(runs: Sequence[Run]) -> Figure:
    """Seconds of one step: predicted part by part, and measured."""
    parts = [run.predicted("time") for run in runs]
    measured = [time_of(run).measured for run in runs]
    return _bars(runs, parts, TIME, measured, 1.0, "seconds per step")


def history(runs: Sequence[Run]) -> Figure:
    """What happened when: a row for each run, a bar for each start, a cross where one was lost."""
    figure, axis = plt.subplots(figsize=(WIDE, 1.2 + 0.7 * len(runs)))
    for row, run in enumerate(runs):
        zero = min((start.began for start in run.starts), default=run.steps[0]["time"])
        for start, late in zip_longest(run.starts, run.starts[1:]):
            begin, end = (start.began - zero) / 60, (start.ended - zero) / 60
            width = max(end - begin, 1e-3)
            axis.barh(row, width, left=begin, height=0.5, color=_color(row),
                      alpha=0.35 + 0.65 * start.gpus / max(s.gpus for s in run.starts),
                      edgecolor="white")  # fmt: skip
            steps = f"steps {start.steps[0]}–{start.steps[1]}" if start.steps else "no step"
            axis.text(begin + width / 2, row + 0.36, f"{ranks(start.gpus)}, {steps}", ha="center",
                      va="center", fontsize=9)  # fmt: skip
            if late is not None:
                mark = ("|", INK) if run.lossless(late) else ("x", LOST)
                axis.plot(end, row, mark[0], color=mark[1], markersize=10, markeredgewidth=2.5)
            elif run.done:
                axis.plot(end, row, "o", color="#2a8f5c", markersize=8)
    axis.set_yticks(range(len(runs)), [run.name for run in runs])
    axis.set_ylim(len(runs) - 0.4, -0.5)
    axis.set_xlabel("minutes since the first start  (× ended early, | saved;  ● done)")
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right", "left"]].set_visible(False)
    return figure


FIGURES: Mapping[str, tuple[str, Draw]] = {
    "losses": ("Loss", losses),
    "history": ("GPU counts, faults and resumes", history),
    "speed-up": ("Speed-up", speed_up),
    "speed": ("Throughput", speed),
    "memory": ("Memory, predicted and measured", memory),
    "time": ("Time of a step, predicted and measured", step_time),
}


def _bars(
    runs: Sequence[Run],
    parts: Sequence[Mapping[str, float]],
    names: Sequence[str],
    measured: Sequence[float],
    unit: float,
    label: str,
) -> Figure:
    """Two bars a run: the prediction, stacked, and the measurement."""
    figure, axis = plt.subplots(figsize=(WIDE, 1.3 + 0.8 * len(runs)))
    for row, (values, found) in enumerate(zip(parts, measured, strict=True)):
        left = 0.0
        for number, name in enumerate(names):
            width = float(values.get(name, 0.0)) / unit
            axis.barh(row - 0.19, width, left=left, height=0.34, color=PARTS[number],
                      label=name if row == 0 else None)  # fmt: skip
            left += width
        axis.text(left, row - 0.19, f" {left:.3g}", va="center", fontsize=9)
        width = found / unit
        axis.barh(row + 0.19, width, height=0.34, color="#2a8f5c",
                  label="measured" if row == 0 else None)  # fmt: skip
        axis.text(width, row + 0.19, f" {width:.3g}", va="center", fontsize=9)
    axis.set_yticks(range(len(runs)), [_label(run) for run in runs])
    axis.invert_yaxis()
    axis.set_xlabel(label)
    axis.margins(x=0.08)
    axis.legend(fontsize=9, ncols=3, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _label(run: Run) -> str:
    return f"{run.name}: {ranks(*run.gpus)}"


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _finish(axis: Axes, label: str, *, legend: bool = True) -> None:
    axis.set_ylabel(label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if legend:
        axis.legend(frameon=False, fontsize=9)
