"""`anyrank stop RUN`: have a run save and stop after its current step, and wait until it has."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from train.arguments import Parser
from train.errors import ConfigError, ExitCode
from train.launch import progress
from train.launch.owner import owner_of

_EVERY = 0.3  # seconds between two looks


def command(argv: Sequence[str]) -> int:
    """Stop a run; return the exit code: also 0 if it was not running.

    Raises:
        ConfigError: there is no such run folder.
    """
    parser = Parser("anyrank stop", str(__doc__), "anyrank stop: ")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    run = parser.parse_args(list(argv)).run
    require_run(run)
    owner = owner_of(run)
    if owner is None:
        print(f"{run} is not running: {_standing(run)}")
        return ExitCode.DONE
    (run / "STOP").touch()
    print(f"Asked {run} to save and stop ({owner}); Ctrl-C only ends the waiting", flush=True)
    while owner_of(run) is not None:
        time.sleep(_EVERY)
    (run / "STOP").unlink(missing_ok=True)
    print(f"{run} has ended: {_standing(run)}")
    return ExitCode.DONE


def require_run(run: Path) -> None:
    """Refuse what is no run's folder.

    Raises:
        ConfigError: it is none.
    """
    if not ((run / "attempts").is_dir() or (run / "OWNER").is_file()):
        raise ConfigError(
            f"'{run}' is no run's folder: name one (--run-dir), such as 'anyrank runs' lists"
        )


def _standing(run: Path) -> str:
    if (run / "DONE").exists():
        return "it is done"
    saved = progress.newest_checkpoint(run)
    return f"saved after step {saved}" if saved else "nothing is saved yet"
