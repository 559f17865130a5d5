"""What became of one start of the ranks, and what follows from it: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from train.errors import ExitCode

RESTARTS = 3  # without progress
# After these there is nothing to start again.
FINAL = (ExitCode.DONE, ExitCode.USER, ExitCode.NON_FINITE, ExitCode.STOPPED)

# What an exit code says about its cause; a rank that was killed left none.
_MEANINGS: dict[int | None, int] = {
    ExitCode.USER: 0,
    ExitCode.NON_FINITE: 0,
    ExitCode.OUT_OF_MEMORY: 0,
    None: 1,
}


@dataclass(frozen=True)
class Death:
    """A rank that failed; `code` is None after a kill, `time` when it did, since the epoch.

    `tail` is the end of what it printed; `error` what it raised, unless anyrank has a name for it.
    """

    rank: int
    host: str
    code: int | None
    time: float
    tail: str = ""
    error: str = ""

    @property
    def cause(self) -> str:
        """How it ended, in words."""
        names = {
            ExitCode.USER: "something must be changed",
            ExitCode.NON_FINITE: "not finite",
            ExitCode.OUT_OF_MEMORY: "out of memory",
        }
        if self.code is None:
            return "was killed"
        name = f", {names[ExitCode(self.code)]}" if self.code in names else ""
        return f"ended with exit code {self.code}{name}"


@dataclass(frozen=True)
class Outcome:
    """The end of one start: `codes` of the hosts' commands, in host order where they are known.

    `done`: there is DONE; `finished`: this start has written it.
    """

    codes: tuple[int, ...] = ()
    deaths: tuple[Death, ...] = ()
    lost: tuple[str, ...] = ()
    hung: bool = False
    ended: ExitCode | None = None  # at once, on request
    done: bool = False
    ended_at: float = 0.0  # seconds since the epoch: when the first end was seen
    finished: bool = False

    @property
    def code(self) -> int:
        """The exit code that this start stands for."""
        if self.ended is not None:
            return self.ended
        # A signal that meets a rank which is leaving a run that is over kills it: that is no fault.
        ends = all(death.code in (None, ExitCode.STOPPED) for death in self.deaths)
        if self.finished and ends and not self.lost:
            return ExitCode.DONE
        first = first_death(self.deaths)
        if first is not None and first.code is not None:
            return first.code
        if first is not None or self.lost or self.hung:
            return ExitCode.FAULT
        failed = [code for code in self.codes if code]
        if failed:
            return failed[0]
        return ExitCode.DONE if self.done else ExitCode.FAULT

    @property
    def error(self) -> str:
        """What explains it, raised by a rank, unless a host or hang does; empty if nothing was."""
        first = first_death(self.deaths)
        return "" if first is None or self.lost or self.hung else first.error


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


def decide(outcome: Outcome, without_progress: int, *, repeats: bool = False) -> Next:
    """Decide after a start.

    Args:
        without_progress: the restarts in a row that made none.
        repeats: whether the start before ended with the same error at the same step: it is no
            accident then, and would come a third time.
    """
    if outcome.code in FINAL or outcome.ended is not None:
        return Next.END
    return Next.GIVE_UP if repeats or without_progress >= RESTARTS else Next.RESTART
