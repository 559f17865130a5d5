"""The command `anyrank`: each subcommand is a module that is imported only when it is asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from train.errors import AnyrankError, ConfigError, did_you_mean

# Every module has `command(argv: Sequence[str]) -> int`, which returns the exit code.
COMMANDS = {
    "plan": ("train.launch.plan", "predict memory and time, and choose; no GPU is touched"),
    "switch": ("train.launch.switch", "choose the hosts that ./launch.sh uses"),
    "smi": ("train.launch.smi", "show the accelerator, all hosts as one"),
    "check": ("train.launch.check", "examine every host before a run"),
    "report": ("train.report", "tables, plots and comparisons of runs"),
    "export": ("train.engine.export", "write a checkpoint as a Hugging Face folder"),
    "prepare": ("train.prepare", "fetch and tokenise ahead, without a GPU"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one subcommand and exit with its code."""
    words = sys.argv[1:] if argv is None else argv
    try:
        code = run(words)
    except AnyrankError as error:
        print(f"[error] {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def run(words: Sequence[str]) -> int:
    """Dispatch `words` and return the exit code.

    Raises:
        ConfigError: no such subcommand.
    """
    if not words or words[0] in ("-h", "--help"):
        print("anyrank COMMAND [arguments]; anyrank COMMAND --help explains one\n")
        print("\n".join(f"  {name:<8} {text}" for name, (_, text) in COMMANDS.items()))
        return 0
    name, *rest = words
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
        raise ConfigError(f"anyrank has no command '{name}'{hint}")
    return int(importlib.import_module(COMMANDS[name][0]).command(rest))


if __name__ == "__main__":
    main()
