"""What can end a run, one class for each party that must act, and the exit code each becomes.

    AnyrankError (1)
    ├── UserError (2)            the user must change something; never retried
    │   ├── ConfigError          an argument or a ds_config
    │   ├── HostfileError        a hostfile line or a host named in one
    │   ├── PlanError            no legal plan, or contradictory pins
    │   ├── DataError            a dataset, a row, a tokenizer
    │   ├── ModelError           a model folder, its keys or shapes
    │   └── CheckpointError      a checkpoint that does not belong to this run
    ├── NonFiniteError (3)       the loss or a gradient is not a number; never retried
    ├── StopRequested (75)       asked to stop, and saved
    ├── OutOfMemoryError (77)    the plan did not fit; a smaller one may
    └── FaultError (1)           a host, a process or a link failed; retrying may help

A message is one sentence: what is wrong, the value found, what to change.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What a process of anyrank returns."""

    DONE = 0
    FAULT = 1
    USER = 2
    NON_FINITE = 3
    STOPPED = 75  # EX_TEMPFAIL of <sysexits.h>: the same command goes on
    OUT_OF_MEMORY = 77
    INTERRUPTED = 130  # 128 + SIGINT


class AnyrankError(Exception):
    """Any end of a run that anyrank can name; `exit_code` is what the process returns."""

    exit_code: ClassVar[ExitCode] = ExitCode.FAULT


class UserError(AnyrankError):
    """The user must change something."""

    exit_code: ClassVar[ExitCode] = ExitCode.USER


class ConfigError(UserError):
    """An argument or a ds_config is wrong."""


class HostfileError(UserError):
    """A hostfile, or a host that it names, is wrong."""


class PlanError(UserError):
    """Nothing legal fits, or the pins contradict each other."""


class DataError(UserError):
    """A dataset, one of its rows, or the tokenizer is wrong."""


class ModelError(UserError):
    """A model folder is missing, incomplete or of another shape."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or belongs to another run."""


class NonFiniteError(AnyrankError):
    """A loss or a gradient is not a number; the update was not applied."""

    exit_code: ClassVar[ExitCode] = ExitCode.NON_FINITE


class StopRequested(AnyrankError):
    """A stop was asked for, and the state has been saved."""

    exit_code: ClassVar[ExitCode] = ExitCode.STOPPED


class OutOfMemoryError(AnyrankError):
    """A device or a host ran out of memory."""

    exit_code: ClassVar[ExitCode] = ExitCode.OUT_OF_MEMORY


class FaultError(AnyrankError):
    """A host, a process or a link failed."""


_ECHO = "raised by rank 0"


def mark_echo(error: BaseException) -> None:
    """Note on an error that rank 0 has raised it, too, and will tell of it."""
    error.add_note(_ECHO)


def is_echo(error: BaseException) -> bool:
    """Whether rank 0 has raised this error, and this is another rank."""
    return _ECHO in getattr(error, "__notes__", ())


def did_you_mean(word: str, choices: Iterable[str], alike: float = 0.6) -> str:
    """Return `; did you mean 'x'?` for the nearest choice, or an empty string.

    `alike`: how near it must be, from 0 to 1.
    """
    near = difflib.get_close_matches(word, sorted(choices), n=1, cutoff=alike)
    return f"; did you mean '{near[0]}'?" if near else ""
