"""`anyrank prepare`: fetch the model and tokenize the dataset ahead of a run, without a GPU."""

from __future__ import annotations

import os
from collections.abc import Sequence

from train.command_line import build_parser
from train.config import parse_args
from train.config_file import expand
from train.output.console import Console
from train.paths import cache_folder
from train.run import inputs

USAGE = """anyrank prepare [arguments of train/main.py]

Fetches the model, and tokenizes the dataset into this user's cache, as the run with the same
arguments would: that run then begins at once on this host. Needs neither torch nor a GPU.

"""


def command(argv: Sequence[str]) -> int:
    """Prepare what `argv`, the arguments of a run, names; return the exit code.

    Raises:
        UserError: an argument, the model's folder or the dataset is wrong.
    """
    if "--help" in argv or "-h" in argv:
        print(USAGE + build_parser().format_help())
        return 0
    console = Console(True)
    cache = cache_folder(os.environ)
    found = inputs.locate(parse_args(expand(argv)), cache, console)
    _, data = inputs.open_data(found, cache, console)
    tokens = int(data.train.lengths.sum()) + int(data.validation.lengths.sum())
    console.say(f"{tokens} tokens are prepared under {cache}")
    return 0
