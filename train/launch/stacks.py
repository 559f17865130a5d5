"""The Python stacks of hanging ranks, without our own threads, alike ones told once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# The threads that rank.py starts: in every rank, and never the reason for a hang.
_OWN = re.compile(r"launch/rank\.py\", line \d+ in (_pulse|_end_without_agent)")


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
        yield f"{noun} {spans(ranks)}: {place}"


def spans(numbers: Iterable[int]) -> str:
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
