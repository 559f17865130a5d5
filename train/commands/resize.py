"""`anyrank resize RUN N`: change the number of GPUs of a run that is running.

Works in any shell of any host that sees the run's folder; the run's supervisor does it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from train.arguments import Parser, whole
from train.commands.stop import require_run
from train.errors import ConfigError
from train.hosts import hostfile
from train.launch import requests
from train.launch.owner import owner_of

_EVERY = 0.3  # seconds between two looks
_PATIENCE = 90.0  # seconds for the supervisor's first word: it may be asking silent hosts


def command(argv: Sequence[str]) -> int:
    """Ask for another size and show what is answered, until it is done; return the exit code.

    Raises:
        UserError: the run is not running, or a word is wrong.
    """
    parser = Parser("anyrank resize", str(__doc__), "anyrank resize: ")
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("gpus", metavar="N", help="GPUs of the whole job")
    parser.add_argument("--hostfile", help="hosts to run on from now on; default: the run's own")
    given = parser.parse_args(list(argv))
    try:
        ranks = whole(1)(given.gpus)
    except ValueError as error:
        raise ConfigError(f"anyrank resize: N {error}") from None
    hosts = None if given.hostfile is None else hostfile.read(given.hostfile)
    if hosts is not None:
        hostfile.fill(hosts, ranks)
    require_run(given.run)
    if owner_of(given.run) is None:
        raise ConfigError(
            f"{given.run} is not running: './launch.sh {ranks} --run-dir {given.run}' goes on with "
            f"{ranks} GPUs"
        )
    try:
        request = requests.ask(given.run, ranks, hosts)
    except OSError as error:
        raise ConfigError(f"{given.run} cannot be written ({error.strerror})") from None
    try:
        return follow(given.run, request)
    finally:
        requests.forget(request)


def follow(run: Path, request: requests.ResizeRequest) -> int:
    """Show the answers until the last; return its exit code.

    Raises:
        ConfigError: there is none.
    """
    shown, began = 0, time.monotonic()
    while True:
        running = owner_of(run) is not None
        answers = requests.answers(request)
        for text, code in answers[shown:]:
            print(text, flush=True)
            if code is not None:
                return code
        shown = len(answers)
        if not running:
            raise ConfigError(f"{run} has ended without an answer: './launch.sh N --run-dir {run}'")
        if not shown and time.monotonic() - began > _PATIENCE:
            raise ConfigError(
                f"{run} has not answered for {_PATIENCE:.0f} s: it may be stopped (Ctrl-Z), or "
                "started without ./launch.sh, which alone can resize a run"
            )
        time.sleep(_EVERY)
