"""A plan: how one optimizer step is laid out on the GPUs, never what it computes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

RECOMPUTE = ("none", "selective", "full")
OFFLOAD = ("none", "optimizer", "all")


@dataclass(frozen=True)
class Plan:
    """A layout of one optimizer step; dp * tp * pp * sp is the number of GPUs.

    `micro_tokens` is the capacity of a micro-batch in real tokens, `accumulation` the expected
    number of micro-batches per replica and step (the true number follows from the lengths).
    """

    zero: int
    micro_tokens: int
    recompute: str = "none"
    offload: str = "none"
    dp: int = 1
    tp: int = 1
    pp: int = 1
    sp: int = 1
    accumulation: int = 1

    @property
    def gpus(self) -> int:
        """The number of GPUs that the plan uses."""
        return self.dp * self.tp * self.pp * self.sp

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON object, keys as in `--pin`."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """Twelve hex digits that name this plan in logs."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]
