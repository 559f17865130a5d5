"""The command `anyrank`: each subcommand is a module that is imported only when it is asked for."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib import metadata

from train.errors import AnyrankError, ConfigError, ExitCode, did_you_mean
from train.hosts import streams
from train.text import shown

# Every module has `command(argv: Sequence[str]) -> int`, which returns the exit code.
COMMANDS = {
    "launch": ("train.launch.__main__", "train on N GPUs, supervised: what ./launch.sh runs"),
    "plan": ("train.commands.plan", "predict memory and time, and choose; no GPU is touched"),
    "switch": ("train.commands.switch", "choose the hosts that are used"),
    "runs": ("train.commands.runs", "what runs and what ran: step, loss, GPUs, time left"),
    "stop": ("train.commands.stop", "have a run save and stop, and wait for it"),
    "resize": ("train.commands.resize", "change the number of GPUs of a run that is running"),
    "smi": ("train.commands.smi", "show the accelerator, all hosts as one"),
    "check": ("train.commands.check", "examine every host before a run"),
    "report": ("train.commands.report", "tables, plots and comparisons of runs"),
    "export": ("train.commands.export", "write a checkpoint as a Hugging Face folder"),
    "prepare": ("train.commands.prepare", "fetch and tokenize ahead, without a GPU"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one subcommand and exit with its code."""
    streams.prepare()
    words = sys.argv[1:] if argv is None else argv
    try:
        code = run(words)
        sys.stdout.flush()
    except AnyrankError as error:
        print(shown(f"[error] {error}", sys.stderr), file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ExitCode.DONE
    sys.exit(code)


def run(words: Sequence[str]) -> int:
    """Dispatch `words` and return the exit code.

    Raises:
        ConfigError: no such subcommand.
    """
    if not words or words[0] in ("-h", "--help"):
        print("anyrank COMMAND [arguments]; anyrank COMMAND --help explains one\n")
        print("\n".join(f"  {name:<8} {text}" for name, (_, text) in COMMANDS.items()))
        return ExitCode.DONE
    if words[0] in ("-V", "--version"):
        print(f"anyrank {metadata.version('anyrank')}")
        return ExitCode.DONE
    name, *rest = words
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
        raise ConfigError(f"anyrank has no command '{name}'{hint}")
    return int(importlib.import_module(COMMANDS[name][0]).command(rest))


if __name__ == "__main__":
    main()
