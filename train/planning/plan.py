"""A plan: how one optimizer step is laid out on the GPUs, never what it computes."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any

from train.errors import PlanError

RECOMPUTE = ("none", "selective", "full")
OFFLOAD = ("none", "optimizer", "all")
BALANCE = ("on", "off")
# The last ZeRO stage that goes with pipeline stages.
STAGED_ZERO = 1
# What each ZeRO stage can offload: without one the optimizer is whole on every rank.
OFFLOADED_AT = (OFFLOAD[:1], OFFLOAD[:2], OFFLOAD[:2], OFFLOAD)


@dataclass(frozen=True)
class Plan:
    """A layout of one optimizer step; dp * tp * pp * sp is the number of GPUs.

    `micro_tokens` is the capacity of a micro-batch in real tokens, `accumulation` the expected
    number of micro-batches per replica and step (the true number follows from the lengths).
    `replicas` are the ranks of each of `dp` replicas that differ, as `4+3`; empty: all have `sp`.
    There `sp` and `micro_tokens` are those of the smallest, and others take as much a rank. Of
    ZeRO-3's weights every `hpz` neighbouring ranks keep a copy among them, if it is more than 1.
    With `balance` on, a replica that computes slower than the others as measured gets less work.

    Raises:
        PlanError: no engine has such a layout.
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
    replicas: str = ""
    hpz: int = 1
    balance: str = "on"

    def __post_init__(self) -> None:
        counts = (self.micro_tokens, self.dp, self.tp, self.pp, self.sp, self.accumulation)
        if min(counts) < 1 or self.recompute not in RECOMPUTE or self.zero not in range(4):
            raise PlanError(f"there is no plan such as {self}: every count is at least 1")
        if self.balance not in BALANCE:
            raise PlanError(f"there is no plan such as {self}: balance is on or off")
        if (len(self.sizes), min(self.sizes)) != (self.dp, self.sp):
            raise PlanError(f"there is no plan such as {self}: its replicas are not dp and sp")
        require_offload(self.zero, self.offload)
        require_hpz(self.hpz, self.zero, self.offload, self.ranks)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many ranks each replica has."""
        return read_sizes(self.replicas) or (self.sp,) * self.dp

    @property
    def ranks(self) -> int:
        """The ranks of all replicas, among which ZeRO divides."""
        return sum(read_sizes(self.replicas)) or self.dp * self.sp

    @property
    def gpus(self) -> int:
        """The number of GPUs that the plan uses."""
        return self.ranks * self.tp * self.pp

    @property
    def balances(self) -> bool:
        """Whether measured speeds may move work between replicas."""
        return self.balance == "on" and self.dp > 1

    def replica(self, rank: int) -> tuple[int, tuple[int, ...]]:
        """Return the number of a rank's replica, and the neighbouring ranks that make it."""
        bounds = [0, *accumulate(self.sizes)]
        number = bisect_right(bounds, rank) - 1
        return number, tuple(range(bounds[number], bounds[number + 1]))

    @property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """The GPUs that work on each replica's rows, at any stage: the order is that of `Mesh`."""
        owners = [number for number, size in enumerate(self.sizes) for _ in range(size)]
        found: list[list[int]] = [[] for _ in self.sizes]
        for gpu in range(self.gpus):
            found[owners[gpu // self.tp % len(owners)]].append(gpu)
        return tuple(tuple(gpus) for gpus in found)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON object, keys as in `--pin`."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """Twelve hex digits that name this plan in logs."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]


def read_sizes(text: str) -> tuple[int, ...]:
    """Return the sizes of replicas that are written as `4+3`; none where there is no text."""
    return tuple(int(word) for word in text.split("+")) if text else ()


def require_offload(zero: int, offload: str) -> None:
    """Refuse to offload what a ZeRO stage keeps whole on every rank.

    Raises:
        PlanError: the stage does not divide it.
    """
    if offload not in OFFLOADED_AT[zero]:
        raise PlanError(
            f"the pins offload={offload}, zero={zero} contradict each other: offload=optimizer "
            "needs zero=1, 2 or 3, and offload=all needs zero=3"
        )


def require_hpz(hpz: int, zero: int, offload: str, ranks: int) -> None:
    """Refuse a second copy of the weights that DeepSpeed cannot keep.

    Raises:
        PlanError: the stage has none, its weights are offloaded, or the ranks do not divide.
    """
    if hpz > 1 and (zero != 3 or offload == "all" or ranks % hpz):
        raise PlanError(
            f"hpz={hpz} is a second copy of ZeRO-3's weights on every {hpz} ranks: it needs "
            f"zero=3, weights that are not offloaded, and a divisor of the {ranks} ranks"
        )


def require_stages(pp: int, zero: int | None, offload: str | None) -> None:
    """Refuse what a pipeline does not go with: each micro-batch would reduce, or fetch, again.

    Raises:
        PlanError: a ZeRO stage above 1, or offload, is pinned with more than one pipeline stage.
    """
    if pp > 1 and ((zero or 0) > STAGED_ZERO or offload not in (None, "none")):
        given = f"zero={zero}" if (zero or 0) > STAGED_ZERO else f"offload={offload}"
        raise PlanError(
            f"the pins pp={pp}, {given} contradict each other: pp goes with zero=0 or 1 and "
            "offload=none; change the one that --pin gives, or --ds-config (auto.json pins nothing)"
        )


def stage_layers(layers: int, stages: int) -> tuple[range, ...]:
    """Return which layers each stage of a pipeline has: the first ones have what is left over.

    The last has the head besides.
    """
    sizes = (layers // stages + (stage < layers % stages) for stage in range(stages))
    ends = list(accumulate(sizes, initial=0))
    return tuple(range(first, last) for first, last in pairwise(ends))


def sums_in_fp32(zero: int, precision: str) -> bool:
    """Whether DeepSpeed adds gradients up in fp32: its stage 0 has no fp32 sums in bf16 or fp16."""
    return zero > 0 or precision == "fp32"


def require_fp32_sums(zero: int, precision: str) -> None:
    """Refuse a stage that would add gradients up in 16 bits.

    Raises:
        PlanError: ZeRO-0 in bf16 or fp16.
    """
    if not sums_in_fp32(zero, precision):
        raise PlanError(
            f"ZeRO stage 0 is not offered in {precision}, in which it would accumulate gradients: "
            "pin zero to 1, 2 or 3, or use --precision fp32"
        )
