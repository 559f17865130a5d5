"""What losses are multiplied by so that fp16 holds their gradients, and when that changes.

The rule is DeepSpeed's: halved where a gradient overflowed, doubled after so many steps without.
It is kept here, since DeepSpeed's ZeRO doubles its own between a gradient and the division by it,
so that the update is half of what it should be; and since the factor belongs into the logits'
gradient: those of a large step are too small for fp16 before they are scaled. A power of two
rounds nothing, so neither ranks nor checkpoints need to know it: a start begins with the first.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST, LEAST = 2.0**16, 1.0
WINDOW = 1000  # steps


@dataclass
class LossScale:
    """The factor; equal on all ranks, because all hear of the same overflows."""

    value: float = 1.0
    dynamic: bool = False
    applied: int = 0  # steps since it changed

    @classmethod
    def of(cls, precision: str) -> LossScale:
        """Return what a precision starts with: no factor but in fp16."""
        return cls(FIRST, dynamic=True) if precision == "fp16" else cls()

    def halved(self) -> bool:
        """Halve it after an overflow; False where it is as small as it may be, or no factor."""
        if not self.dynamic or self.value <= LEAST:
            return False
        self.value, self.applied = self.value / 2, 0
        return True

    def count(self) -> None:
        """Count a step that was applied; a larger factor is tried from time to time."""
        self.applied += 1
        if self.dynamic and self.applied == WINDOW:
            self.value, self.applied = self.value * 2, 0
