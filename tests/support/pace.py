"""How quick this machine is now, so that a limit on processor time means the same on any."""

import resource
import subprocess
import sys
from typing import Any

WORK = "sum(len(str(n)) for n in range(1_000_000))"


def unit() -> float:
    """Return the least CPU seconds of three in which a new interpreter does a fixed piece of work.

    0.11 on an idle core of an AMD EPYC.
    """
    return min(spent([sys.executable, "-I", "-S", "-c", WORK]) for _ in range(3))


def spent(words: list[str], **how: Any) -> float:
    """Return the CPU seconds of a command, from its start to its end; `how` is subprocess.run's."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, **how)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
