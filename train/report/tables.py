"""The tables of a report: what runs did, and whether their losses are one curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.checkpoint.folder import survey
from train.errors import ConfigError
from train.output.metrics import PHASES
from train.report.against_plan import Against, Speed, memory_of, speeds, time_of
from train.report.facts import differences, what_was_run
from train.report.page import BELOW, LONG, WORDS, Table
from train.report.runs import Run, compare, ranks
from train.text import GIB, align, fitted, format_bytes


def tables(runs: Sequence[Run]) -> dict[str, Table]:
    """Return the report's tables by heading."""
    return {
        "What was run": what_was_run(runs),
        "Runs": [_summary(run) for run in runs],
        "Loss": [_against(runs[0], run) for run in runs[1:]],
        "Speed-up": [_speed(one) for group in speeds(runs) for one in group],
        "GPU counts, faults and resumes": [row for run in runs for row in _history(run)],
        "Memory, predicted and measured": [_memory(run) for run in runs],
        "Time of a step, predicted and measured": [_time(run) for run in runs],
    }


def _summary(run: Run) -> dict[str, str]:
    first, last = run.steps[0], run.steps[-1]
    mfu = run.usual("mfu")
    return {
        "run": run.name,
        "ranks": " → ".join(map(str, run.gpus)),
        "steps": f"{first['step']}–{last['step']}",
        "first loss": f"{first['loss']:.6f}",
        "last loss": f"{last['loss']:.6f}",
        "eval loss": f"{run.evals[-1]['eval_loss']:.6f}" if run.evals else "–",
        "tokens/s": f"{run.usual('tokens_per_s') or 0:,.0f}",
        "MFU": f"{mfu:.1%}" if mfu is not None else "–",
        "precision": run.precision,
        "starts": str(len(run.starts)),
        "state": "done" if run.done else "not finished",
    }


def _against(base: Run, run: Run) -> dict[str, str]:
    found = compare(base, run)
    return {
        "run": run.name,
        "against": base.name,
        "steps in common": str(found.common if found else 0),
        "largest relative difference": f"{found.relative:.2e}" if found else "–",
        "in step": str(found.step) if found else "–",
        "samples, rates, tokens": _same(found.apart) if found else "–",
        "set otherwise": ", ".join(differences(base, run)) or "nothing",
    }


def _same(apart: int | None) -> str:
    return "equal" if apart is None else f"differ from step {apart}"


def _history(run: Run) -> list[dict[str, str]]:
    """The starts and the launcher's lines, in the order of time, in minutes since the first."""
    rows: list[tuple[float, str, str]] = []
    for start in run.starts:
        steps = f"steps {start.steps[0]} to {start.steps[1]}" if start.steps else "no step"
        how = "" if start is not run.starts[-1] or run.done else f"; last said: {start.last_line}"
        rows.append((start.began, f"start {start.number}", f"{ranks(start.gpus)}, {steps}{how}"))
    for early, late in zip(run.starts, run.starts[1:], strict=False):
        resumed = f"resumed by start {late.number} on {ranks(late.gpus)}"
        rows.append((early.ended, "saved" if run.lossless(late) else "ended early", resumed))
    rows += [(event.time, "launcher", event.text) for event in run.events]
    rows += [(line["time"], f"paused for {line['pause']:.1f} s", _pause(line))
             for line in run.restarts if line["pause"] is not None]  # fmt: skip
    if run.done:
        rows.append((max(start.ended for start in run.starts), "done", ""))
    zero = min((when for when, _, _ in rows), default=0.0)
    return [
        {"run": run.name, "minute": f"{(when - zero) / 60:.2f}", "what": what, "more": more}
        for when, what, more in sorted(rows, key=lambda row: row[0])
    ]


def _pause(line: Mapping[str, Any]) -> str:
    """What a pause was made of, in seconds; what is not known is left out."""
    known = [(name.replace("_", " "), line[name]) for name in PHASES if line[name] is not None]
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in known)
    return f"before step {line['step'] + 1}: {parts}"


def _speed(one: Speed) -> dict[str, str]:
    return {
        "run": one.run,
        "ranks": str(one.gpus),
        "tokens/s": f"{one.tokens_per_s:,.0f}",
        "times as fast": f"{one.times:.2f}",
        "ideal": f"{one.ideal:.2f}",
        "of the ideal": f"{one.times / one.ideal:.0%}",
        "slow over quick steps": "–" if one.spread == 1 else f"{one.spread:.2f}",  # too few to tell
    }


def _memory(run: Run) -> dict[str, str]:
    found = memory_of(run)
    unit, name = (GIB, "GiB") if found.measured >= GIB else (GIB / 1024, "MiB")
    return _row(run, found, run.predicted("memory"), unit, f"{name} per device", ".1f")


def _time(run: Run) -> dict[str, str]:
    return _row(run, time_of(run), run.predicted("time"), 1.0, "seconds per step", ".3f")


def _row(
    run: Run, found: Against, parts: Mapping[str, float], unit: float, name: str, form: str
) -> dict[str, str]:
    shown = {"run": run.name, "unit": name}
    shown |= {"planned": f"{found.predicted / unit:{form}}" if found.ratio else "–"}
    shown |= {"measured": f"{found.measured / unit:{form}}"}
    shown |= {"": f"{found.ratio - 1:+.0%}" if found.ratio else "–", "why": found.why}
    if not found.ratio:
        return shown
    kept = (f"{key} {value / unit:{form}}" for key, value in parts.items()
            if key != "total" and value)  # fmt: skip
    return shown | {"planned for": ", ".join(kept)}


def checkpoints(path: Path) -> Table:
    """Return a row for each checkpoint of a run folder, the oldest first, every byte verified.

    Raises:
        ConfigError: there is no such folder.
    """
    if not path.is_dir():
        raise ConfigError(f"{path} is not a folder: name a run's folder (--run-dir)")
    return [
        {
            "step": str(found.step),
            "size": format_bytes(found.bytes),
            "ranks": str(found.world_size or "–"),
            "state": f"damaged: {found.error}" if found.error else "good",
        }
        for found in survey(path)
    ]


def as_text(tables: dict[str, Table], width: int | None = None) -> str:
    """Lay tables out for a terminal of that width; None: as wide as they are."""
    return "\n\n".join(f"{name}\n{_aligned(rows, width)}" for name, rows in tables.items() if rows)


def _aligned(rows: Table, width: int | None) -> str:
    """Return a table whose last columns stand below each row where it would be too wide."""
    moved: list[str] = []
    while True:
        heads = [name for name in rows[0] if name not in (*BELOW, *moved)]
        kept, apart = _without_long(rows, heads, width)
        lines = ["  " + line for line in align(kept, [name in WORDS for name in heads])]
        if width is None or max(map(len, lines)) <= width or len(heads) < 3:
            break
        moved.insert(0, heads[-1])
    found = [lines[0]]
    for line, row, texts in zip(lines[1:], rows, apart, strict=True):
        rest = "; ".join(f"{name}: {row[name]}" for name in moved)
        told = [f"{name}: {row[name]}" for name in row if name in BELOW]
        under = [text for text in (*texts, rest, *told) if text]
        found += [line, *(fitted(text, width or 10**6, " " * 6) for text in under)]
    return "\n".join(found)


def _without_long(
    rows: Table, heads: Sequence[str], width: int | None
) -> tuple[list[list[str]], list[list[str]]]:
    """Return heads and cells of a table, and of each row the texts too long for it, taken out."""
    cells = [[row[name] for name in heads] for row in rows]
    apart: list[list[str]] = [[] for _ in rows]
    for at, name in enumerate(heads):
        if width is None or name not in LONG | {"state"}:
            continue
        others = [column for column in range(len(heads)) if column != at]
        taken = sum(max(len(row[n]) for row in (heads, *cells)) for n in others)
        room = width - taken - 2 * len(heads)
        for row, texts in zip(cells, apart, strict=True):
            if len(row[at]) > room:
                texts.append(row[at])
                row[at] = ""
    return [list(heads), *cells], apart
