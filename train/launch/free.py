"""Which GPUs of a host nobody else uses: those that a job which takes what there is may have."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from train.hosts.probe import HostReport

# Bytes in use on a GPU that nobody uses, less than which its driver and displays hold.
HELD = 1.5e9
_GB = 1e9


def free_of(report: HostReport, own: Collection[int] = ()) -> HostReport:
    """Return a report with the GPUs alone that are free; `held` says which others use, and how far.

    Args:
        own: numbers of GPUs that the run itself uses, whatever they hold.
    """
    # What variables hide of AMD's changes the numbers that they are called by.
    told = len(report.usage) == len(report.gpus) and report.device != "cpu"
    if not told or (report.device == "amd" and report.restricted):
        return report
    pairs = list(zip(report.gpus, report.usage, strict=True))
    kept = [(number, one) for number, one in pairs if one.used <= HELD or number in own]
    held = [f"{number} ({one.used / _GB:.1f} GB)" for number, one in pairs
            if (number, one) not in kept]  # fmt: skip
    if not held:
        return report
    return replace(
        report,
        gpus=tuple(number for number, _ in kept),
        usage=tuple(one for _, one in kept),
        held=f"GPU{'s' if len(held) > 1 else ''} {', '.join(held)}",
    )
