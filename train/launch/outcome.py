"""What became of one start of the ranks, and what follows from it: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

RESTARTS = 3  # without progress
_SHORTEST_HANG = 30.0  # seconds
_SLOWEST_START = 900.0  # seconds without a sign of life before the first step: kernels are built
_SLOWEST_SAVE = 1800.0  # seconds for a file system to take a checkpoint, or the model
_PATIENCE = 10.0  # times the usual step

# What an exit code says about its cause; a rank that was killed left none.
_MEANINGS = {2: 0, 3: 0, 77: 0, None: 1}


@dataclass(frozen=True)
class Death:
    """A rank that failed; `code` is None after a kill, `time` when it did, since the epoch."""

    rank: int
    host: str
    code: int | None
    time: float
    tail: str = ""

    @property
    def cause(self) -> str:
        """How it ended, in words."""
        names = {2: "something must be changed", 3: "not finite", 77: "out of memory"}
        if self.code is None:
            return "was killed"
        name = f", {names[self.code]}" if self.code in names else ""
        return f"ended with exit code {self.code}{name}"


@dataclass(frozen=True)
class Outcome:
    """The end of one start: `codes` of the hosts' commands, in host order where they are known."""

    codes: tuple[int, ...] = ()
    deaths: tuple[Death, ...] = ()
    lost: tuple[str, ...] = ()
    hung: bool = False
    cancelled: bool = False
    done: bool = False

    @property
    def code(self) -> int:
        """The exit code that this start stands for."""
        if self.cancelled:
            return 130
        first = first_death(self.deaths)
        if first is not None and first.code is not None:
            return first.code
        if first is not None or self.lost or self.hung:
            return 1
        failed = [code for code in self.codes if code]
        if failed:
            return failed[0]
        return 0 if self.done else 1


class Next(Enum):
    """What the supervisor does after a start."""

    END = "end"
    RESTART = "restart"
    GIVE_UP = "give up"


def first_death(deaths: Sequence[Death]) -> Death | None:
    """Return the death that explains the others.

    A rank that names a cause comes first, then one that was killed; a plain failure (1) is most
    often the echo of another's end. Among those the earliest counts; but a cause that several
    ranks name is left to rank 0, whose words are on the console.
    """

    def weight(one: Death) -> tuple[int, bool, float]:
        meaning = _MEANINGS.get(one.code, 2)
        return meaning, meaning == 0 and one.rank != 0, one.time

    return min(deaths, key=weight, default=None)


def decide(outcome: Outcome, fruitless: int) -> Next:
    """Decide after a start; `fruitless` counts the restarts in a row that made no progress."""
    if outcome.code in (0, 2, 3, 75) or outcome.cancelled:
        return Next.END
    return Next.RESTART if fruitless < RESTARTS else Next.GIVE_UP


def is_hung(
    idle: float | None,
    since_step: float,
    usual: float | None,
    saving: bool = False,
    stopped: bool = False,
) -> bool:
    """Whether the ranks hang: nothing moves, and no step has come for far longer than usual.

    Args:
        idle: seconds since any rank's main thread moved; None before a rank has reported.
        since_step: seconds since the last finished step, or since the start.
        usual: seconds of a usual step; None before the first.
        saving: whether a save is under way, for which ranks may wait without moving.
        stopped: whether a rank was stopped by a signal, so that nothing is worth waiting for.
    """
    if idle is None:
        return False
    limit = _SLOWEST_START if usual is None else max(_SHORTEST_HANG, _PATIENCE * usual)
    if saving and not stopped:
        limit = max(limit, _SLOWEST_SAVE)
    return min(idle, since_step) > limit
