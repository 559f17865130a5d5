"""Plots of runs, drawn with matplotlib, which is imported only here and only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.report.runs import TOLERANCE, Run, ranks, verdict

COLORS = ("#1b6ca8", "#e07a1f", "#2a8f5c", "#8d4fa8", "#b8336a", "#5c6b73")
MEMORY = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "reserve")
TIME = ("compute", "communication", "pipeline", "offload")
PARTS = ("#1b3a57", "#1b6ca8", "#6fb1d6", "#e07a1f", "#f2b872", "#8d99a6", "#cfd6dd")
FLOOR = 1e-9  # the smallest difference drawn on a logarithmic axis
GIB = 2**30

Draw = Callable[[Sequence[Run]], Figure]


def draw_all(runs: Sequence[Run], folder: Path) -> dict[str, Path]:
    """Write every figure as `<name>.png` into `folder`; return title -> file."""
    found = {}
    for name, (title, draw) in FIGURES.items():
        figure = draw(runs)
        found[title] = folder / f"{name}.png"
        figure.savefig(found[title], dpi=130, bbox_inches="tight", facecolor="white")
        plt.close(figure)
    return found


def losses(runs: Sequence[Run]) -> Figure:
    """All losses over one another, first widest, and below them how far each is from the first."""
    shape: dict[str, Any] = {"height_ratios": (3, 1)} if len(runs) > 1 else {}
    figure, axes = plt.subplots(
        2 if len(runs) > 1 else 1, sharex=True, figsize=(10, 6), squeeze=False, gridspec_kw=shape
    )
    top = axes[0][0]
    for number, run in enumerate(runs):
        place = len(runs) - 1 - number
        top.plot(
            [step["step"] for step in run.steps], [step["loss"] for step in run.steps],
            color=_color(number), linewidth=1.4 + 3.2 * place, alpha=0.45 if place else 1.0,
            label=_label(run), solid_capstyle="round",
        )  # fmt: skip
        if run.evals:
            top.plot(*zip(*((e["step"], e["eval_loss"]) for e in run.evals), strict=True), "D",
                     color=_color(number), markersize=4 + 2.5 * place, alpha=0.7)  # fmt: skip
        _resumes(top, run, _color(number))
    said = verdict(runs).replace(" (", "\n(").replace("; ", "\n")
    top.set_title(said, loc="left", fontsize=12, fontweight="bold")
    _finish(top, "loss (nats per token)")
    if len(runs) > 1:
        _differences(axes[1][0], runs)
    axes[-1][0].set_xlabel("optimizer step  (diamond: evaluation; dotted: resumed here)")
    return figure


def _resumes(axis: Axes, run: Run, color: str) -> None:
    """Mark where a run went on after it had ended early, and on how many ranks."""
    for before, after in pairwise(run.starts):
        if before.steps and after.steps:
            axis.axvline(after.steps[0] - 0.5, color=color, linestyle=":", linewidth=1.4)
            text = f" {run.name}: {before.gpus} → {after.gpus} ranks after step {before.steps[1]}"
            if not run.lossless(after):
                text = f" {run.name}: step {before.steps[1]} on {before.gpus} ranks, lost;\n"
                text += f" resumed from step {after.steps[0] - 1} on {after.gpus}"
            axis.text(after.steps[0] - 0.5, 0.97, text, transform=axis.get_xaxis_transform(),
                      fontsize=8, color=color, va="top")  # fmt: skip


def _differences(axis: Axes, runs: Sequence[Run]) -> None:
    base = {step["step"]: step["loss"] for step in runs[0].steps}
    for number, run in enumerate(runs[1:], 1):
        pairs = [(s["step"], abs(s["loss"] / base[s["step"]] - 1)) for s in run.steps
                 if base.get(s["step"])]  # fmt: skip
        axis.plot([step for step, _ in pairs], [max(size, FLOOR) for _, size in pairs], ".-",
                  color=_color(number), linewidth=1, markersize=4)  # fmt: skip
    limit = max(TOLERANCE.get(run.precision, 1e-6) for run in runs)
    axis.axhline(limit, color="#b8336a", linestyle="--", linewidth=1)
    axis.text(0.995, limit, f"promised {limit:.0e} ", transform=axis.get_yaxis_transform(),
              ha="right", va="bottom", fontsize=8, color="#b8336a")  # fmt: skip
    axis.set_yscale("log")
    axis.set_ylim(FLOOR / 2, max(limit, axis.get_ylim()[1]) * 8)
    _finish(axis, f"relative difference\nto {runs[0].name}", legend=False)


def speed(runs: Sequence[Run]) -> Figure:
    """Real tokens per second of every step, and model FLOP utilisation where it is known."""
    known = any(step.get("mfu") is not None for run in runs for step in run.steps)
    figure, axes = plt.subplots(1, 2 if known else 1, figsize=(10, 3.6), squeeze=False)
    for axis, key, name in zip(
        axes[0], ("tokens_per_s", "mfu"), ("real tokens per second", "MFU (%)"), strict=False
    ):
        for number, run in enumerate(runs):
            scale = 100 if key == "mfu" else 1
            points = [(s["step"], s[key] * scale) for s in run.steps if s.get(key) is not None]
            axis.plot(*zip(*points, strict=True), color=_color(number), label=_label(run),
                      linewidth=1.2)  # fmt: skip
            usual = run.usual(key)
            if usual is not None:
                axis.axhline(usual * scale, color=_color(number), linestyle="--", linewidth=0.8)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("optimizer step  (dashed: median)")
        _finish(axis, name)
    figure.tight_layout()
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
    measured = [run.usual("seconds") or 0.0 for run in runs]
    return _bars(runs, parts, TIME, measured, 1.0, "seconds per step")


def history(runs: Sequence[Run]) -> Figure:
    """What happened when: a row for each run, a bar for each start, a cross where one was lost."""
    figure, axis = plt.subplots(figsize=(10, 1.3 + 0.75 * len(runs)))
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
                      va="center", fontsize=8, color="#222222")  # fmt: skip
            if late is not None:
                mark = ("|", "#222222") if run.lossless(late) else ("x", "#b8336a")
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
    figure, axis = plt.subplots(figsize=(10, 1.2 + 0.9 * len(runs)))
    for row, (values, found) in enumerate(zip(parts, measured, strict=True)):
        left = 0.0
        for number, name in enumerate(names):
            width = float(values.get(name, 0.0)) / unit
            axis.barh(row - 0.19, width, left=left, height=0.34, color=PARTS[number],
                      label=name if row == 0 else None)  # fmt: skip
            left += width
        axis.text(left, row - 0.19, f" {left:.3g}", va="center", fontsize=8)
        width = found / unit
        axis.barh(row + 0.19, width, height=0.34, color="#2a8f5c",
                  label="measured" if row == 0 else None)  # fmt: skip
        axis.text(width, row + 0.19, f" {width:.3g}", va="center", fontsize=8)
    axis.set_yticks(range(len(runs)), [_label(run) for run in runs])
    axis.invert_yaxis()
    axis.set_xlabel(label)
    axis.margins(x=0.08)
    axis.legend(fontsize=8, ncols=4, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _label(run: Run) -> str:
    return f"{run.name}: {ranks(*run.gpus)}"


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _finish(axis: Axes, label: str, *, legend: bool = True) -> None:
    axis.set_ylabel(label)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if legend:
        axis.legend(frameon=False, fontsize=9)
