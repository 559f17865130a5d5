"""`anyrank report RUN…`: what runs did and whether their losses are one curve.

Tables on the terminal; unless told otherwise, also a self-contained HTML page and its PNGs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from train.checkpoints import spoken, survey
from train.curves import Run, compare, ranks, read_runs, verdict
from train.errors import ConfigError
from train.page import WORDS, Table, render_page

GIB = 2**30


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"anyrank report: {message}; see anyrank report --help")


def command(argv: Sequence[str]) -> int:
    """Report on the run folders named in `argv`; return the exit code.

    Raises:
        ConfigError: a folder is no run's, or matplotlib is missing.
    """
    parser = _Parser(prog="anyrank report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--out", type=Path, help="default: RUN/report, of the first run")
    parser.add_argument("--text", action="store_true", help="tables on the terminal only")
    parser.add_argument("--checkpoints", action="store_true", help="list the runs' checkpoints")
    given = parser.parse_args(list(argv))
    if given.checkpoints:
        for path in given.runs:
            found = checkpoints(path)
            none = f"{path} has no checkpoint"
            print(_text({f"Checkpoints of {path}": found}) if found else none)
        return 0
    runs = read_runs(given.runs)
    print(f"{verdict(runs)}\n\n{_text(tables(runs))}")
    if not given.text:
        print(f"\nWritten: {write(runs, given.out or runs[0].path / 'report')}")
    return 0


def tables(runs: Sequence[Run]) -> dict[str, Table]:
    """Return the report's tables by heading."""
    return {
        "Runs": [_summary(run) for run in runs],
        "Loss": [_against(runs[0], run) for run in runs[1:]],
        "GPU counts, faults and resumes": [row for run in runs for row in _history(run)],
        "Memory, predicted and measured": [_memory(run) for run in runs],
        "Time of a step, predicted and measured": [_time(run) for run in runs],
    }


def write(runs: Sequence[Run], folder: Path) -> Path:
    """Write `index.html` and its pictures into `folder`; return the page's path.

    Raises:
        ConfigError: matplotlib is missing, or the folder cannot be written.
    """
    try:
        from train.figures import draw_all
    except ImportError:
        raise ConfigError(
            "the pictures need matplotlib: pip install matplotlib, or give --text"
        ) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        said = verdict(runs)
        text = render_page(
            title=f"anyrank report: {', '.join(run.name for run in runs)}",
            verdict=said,
            good=len(runs) < 2 or said.startswith("One curve"),
            tables=tables(runs),
            pictures=draw_all(runs, folder),
            footer=f"Made {time.strftime('%Y-%m-%d %H:%M')} from "
            + ", ".join(str(run.path) for run in runs),
        )
        page = folder / "index.html"
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror}): give --out") from None
    return page


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
        rows.append((early.ended, "ended early", f"resumed by start {late.number}"))
    rows += [(event.time, "launcher", event.text) for event in run.events]
    if run.done:
        rows.append((max(start.ended for start in run.starts), "done", ""))
    zero = min((when for when, _, _ in rows), default=0.0)
    return [
        {"run": run.name, "minute": f"{(when - zero) / 60:.2f}", "what": what, "more": more}
        for when, what, more in sorted(rows, key=lambda row: row[0])
    ]


def _memory(run: Run) -> dict[str, str]:
    parts = run.predicted("memory")
    measured = max(step["peak_bytes"] for step in run.steps)
    unit, name = (GIB, "GiB") if measured >= GIB else (GIB / 1024, "MiB")
    shown = {"run": run.name} | {key: f"{value / unit:.1f}" for key, value in parts.items()}
    return shown | {"measured": f"{measured / unit:.1f}", "unit": f"{name} per device"}


def _time(run: Run) -> dict[str, str]:
    parts = run.predicted("time")
    shown = {"run": run.name} | {name: f"{value:.3f}" for name, value in parts.items()}
    return shown | {"measured": f"{run.usual('seconds') or 0:.3f}", "unit": "seconds per step"}


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
            "size": spoken(found.bytes),
            "ranks": str(found.world_size or "–"),
            "state": f"damaged: {found.fault}" if found.fault else "good",
        }
        for found in survey(path)
    ]


def _text(tables: dict[str, Table]) -> str:
    """Lay tables out for a terminal."""
    return "\n\n".join(f"{name}\n{_aligned(rows)}" for name, rows in tables.items() if rows)


def _aligned(rows: Table) -> str:
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(len(lines[0]))]
    left = [name in WORDS for name in rows[0]]
    return "\n".join(
        "  " + "  ".join(
            cell.ljust(width) if words else cell.rjust(width)
            for cell, width, words in zip(line, widths, left, strict=False)
        ).rstrip()
        for line in lines
    )  # fmt: skip
