"""Whether the ranks hang, and where: their Python stacks, those that are alike told once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# The thread that heartbeat.py starts: in every rank, and never the reason for a hang.
_OWN = re.compile(r"launch/heartbeat\.py\", line \d+ in _pulse")
_SHORTEST_HANG = 30.0  # seconds
_SLOWEST_START = 900.0  # seconds without a sign of life before the first step: kernels are built
_SLOWEST_SAVE = 1800.0  # seconds for a file system to take a checkpoint, or the model
_PATIENCE = 10.0  # times the usual step


def is_hung(
    idle: float | None,
    since_step: float,
    usual: float | None,
    *,
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


def summary(reports: Iterable[tuple[int, str, str]]) -> Iterator[str]:
    """Yield a paragraph for each group of ranks that stand at the same place.

    Args:
        reports: rank, the kernel's letter for its state, and what faulthandler wrote.
    """
    groups: dict[str, list[int]] = {}
    for rank, state, text in sorted(reports):
        groups.setdefault(_place(state, text), []).append(rank)
    for place, ranks in groups.items():
        noun = "rank" if len(ranks) == 1 else "ranks"
        yield f"{noun} {format_ranges(ranks)}: {place}"


def format_ranges(numbers: Iterable[int]) -> str:
    """Return `0-3, 5` for 0, 1, 2, 3, 5."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][-1] + 1:
            found[-1] = [found[-1][0], number]
        else:
            found.append([number])
    return ", ".join("-".join(map(str, span)) for span in found)


def _place(state: str, text: str) -> str:
    if state in ("T", "t"):
        return "stopped by a signal (SIGSTOP, or a debugger)"
    threads = [part for part in re.split(r"\n\s*\n", text.strip()) if not _OWN.search(part)]
    plain = "\n".join(re.sub(r"0x[0-9a-f]+ ", "", part) for part in threads)
    return plain or "printed no stack"
