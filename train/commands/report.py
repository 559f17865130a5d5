"""`anyrank report RUN…`: what runs did and whether their losses are one curve.

Tables on the terminal; unless told otherwise, also a self-contained HTML page and its figures.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from train.arguments import Parser
from train.errors import ConfigError, ExitCode
from train.report.page import render_page
from train.report.runs import Run, read_runs
from train.report.tables import as_text, checkpoints, tables
from train.report.verdict import sentences, tone, verdict
from train.text import fitted, terminal_width


def command(argv: Sequence[str]) -> int:
    """Report on the run folders named in `argv`; return the exit code.

    Raises:
        ConfigError: a folder is no run's, or matplotlib is missing.
    """
    parser = Parser("anyrank report", str(__doc__), "anyrank report: ")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--out", type=Path, help="default: RUN/report, of the first run")
    parser.add_argument("--text", action="store_true", help="tables on the terminal only")
    parser.add_argument("--checkpoints", action="store_true", help="list the runs' checkpoints")
    given = parser.parse_args(list(argv))
    width = terminal_width()
    if given.checkpoints:
        for path in given.runs:
            found = checkpoints(path)
            none = f"{path} has no checkpoint"
            print(as_text({f"Checkpoints of {path}": found}, width) if found else none)
        return ExitCode.DONE
    runs = read_runs(given.runs)
    print(f"{fitted(verdict(runs), width)}\n\n{as_text(tables(runs), width)}")
    if not given.text:
        print(f"\nWritten: {write(runs, given.out or runs[0].path / 'report')}")
    return ExitCode.DONE


def write(runs: Sequence[Run], folder: Path) -> Path:
    """Write `index.html` and its pictures into `folder`; return the page's path.

    Raises:
        ConfigError: matplotlib is missing, or the folder cannot be written.
    """
    try:
        from train.report.figures import draw_all
    except ImportError:
        raise ConfigError(
            "the pictures need matplotlib: pip install matplotlib, or give --text"
        ) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = render_page(
            title=f"anyrank report: {', '.join(run.name for run in runs)}",
            verdict=sentences(runs),
            tone=tone(runs),
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
