"""Which parts of a plan are fixed: by the ds_config, and over it by the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from train.config import RunConfig
from train.errors import PlanError, did_you_mean
from train.planning.dsconfig import HPZ, DsConfig
from train.planning.plan import (
    BALANCE,
    OFFLOAD,
    RECOMPUTE,
    read_sizes,
    require_fp32_sums,
    require_offload,
    require_stages,
)

# To describe other people's runs: their kernels, and the type that they add gradients in.
OTHERS = {"attention": ("dense", "flash"), "kernels": ("plain", "fused"),
          "gradients": ("bf16", "fp32")}  # fmt: skip
# Whether the ranks of tensor parallelism divide the tokens of norms among them (Megatron's
# sequence parallelism), and whether ZeRO divides among all replicas or those of a host.
DIVIDED = {"sequence": ("whole", "tensor"), "shards": ("all", "host")}
NAMED = {"recompute": RECOMPUTE, "offload": OFFLOAD, "zero": ("0", "1", "2", "3"),
         "balance": BALANCE, **DIVIDED}  # fmt: skip
COUNTS = ("micro_tokens", "dp", "tp", "pp", "sp", "hpz")
LARGEST = 10**12


@dataclass(frozen=True)
class Pins:
    """The parts of a plan that are fixed; None leaves one to the planner.

    `sequence` and `shards` are parts of a layout that the planner does not search.

    Raises:
        PlanError: no plan has both the stage and the offload.
    """

    zero: int | None = None
    micro_tokens: int | None = None
    recompute: str | None = None
    offload: str | None = None
    dp: int | None = None
    tp: int | None = None
    pp: int | None = None
    sp: int | None = None
    sequence: str | None = None
    shards: str | None = None
    replicas: str | None = None
    hpz: int | None = None
    balance: str | None = None

    def __post_init__(self) -> None:
        if self.zero is not None and self.offload is not None:
            require_offload(self.zero, self.offload)

    def words(self) -> dict[str, str]:
        """Return what is fixed as `--pin` takes it, in the order of the names."""
        found = {key: str(value) for key, value in asdict(self).items() if value is not None}
        return dict(sorted(found.items()))


@dataclass(frozen=True)
class Implementation:
    """How other people's run is made: DeepSpeed's or Megatron's own accounting, not this project's.

    `attention` dense keeps the scores; `kernels` fused are single ones for norms, gates and loss;
    `gradients` is the type in which they are added up before ZeRO-3.
    """

    attention: str = "flash"
    kernels: str = "fused"
    gradients: str = "bf16"


def merge_pins(config: RunConfig, ds: DsConfig) -> Pins:
    """Return the pins of a run, the command line's over the file's.

    Raises:
        PlanError: a value that no plan can have, ZeRO-0 in bf16, stages with a ZeRO stage that they
            do not go with, or pairs of answers that would be divided.
    """
    pins = read_pins({**ds.pins, **config.pins})
    if config.data.objective == "dpo":
        _refuse_divided_pairs(pins)
    if config.model.quantize:
        refuse_zero3(config.pins, config.model.quantize)
    if config.model.quantize and pins.zero == 3:
        offload = None if pins.offload == "all" else pins.offload
        pins = replace(pins, zero=None, hpz=None, offload=offload)
    if pins.zero is not None:
        require_fp32_sums(pins.zero, config.model.precision)
    require_stages(pins.pp or 1, pins.zero, pins.offload)
    return pins


def unit_of(pins: Pins) -> int:
    """Return how many GPUs the pinned degrees take together: a run's size is a multiple of it."""
    return (pins.tp or 1) * (pins.pp or 1) * (pins.sp or 1)


def _refuse_divided_pairs(pins: Pins) -> None:
    """Refuse pins by which several ranks work on one row.

    Raises:
        PlanError: it names the pin.
    """
    shared = max(read_sizes(pins.replicas or "1")) > 1
    found = [f"{key}={n}" for key in ("tp", "pp", "sp") if (n := getattr(pins, key) or 1) > 1]
    if found or shared:
        raise PlanError(
            f"--pin {' '.join(found) or f'replicas={pins.replicas}'} has several ranks work on one "
            "row, but with --objective dpo each rank compares the two answers of its own pairs: "
            "leave it out"
        )


def refuse_zero3(pins: Mapping[str, str], kind: str) -> None:
    """Refuse pins that only ZeRO-3 has, over a base in 4 bits.

    Raises:
        PlanError: it names the pin.
    """
    for key, value in pins.items():
        if (key, value) in (("zero", "3"), ("offload", "all")) or (key == "hpz" and value != "1"):
            raise PlanError(
                f"--pin {key}={value} would divide the base that --quantize {kind} packs in 4 "
                "bits: leave it out, or pin zero to 0, 1 or 2, where the base is whole on every "
                "rank"
            )


def hpz_left_out(pins: Pins, config: RunConfig, ds: DsConfig, ranks: int) -> str:
    """Say why a ds_config's second copy of the weights cannot be kept here; empty: it can.

    One that the command line pins is refused instead.
    """
    if pins.hpz in (None, 1) or "hpz" in config.pins:
        return ""
    words = f"{ds.path}: {HPZ} {pins.hpz} is left out: "
    if pins.zero not in (None, 3) or pins.offload == "all":
        return words + "it is for ZeRO-3 whose weights are not offloaded"
    return words + f"it does not divide {ranks} ranks" if ranks % pins.hpz else ""


def zero3_left_out(pins: Mapping[str, str], config: RunConfig, ds: DsConfig) -> str:
    """Say why a ds_config's stage 3 is not kept; empty: it is, or there is none."""
    if not config.model.quantize or ds.pins.get("zero") != "3" or "zero" in pins:
        return ""
    return (
        f"--quantize {config.model.quantize}: {ds.path}'s ZeRO-3 is left out, since it would "
        "divide what is packed in 4 bits; the frozen base is whole on every rank"
    )


def read_pins(words: Mapping[str, str]) -> Pins:
    """Return the parts of a plan that `key=value` words fix.

    Raises:
        PlanError: one sentence with the pin, its value and what it may be.
    """
    numbers = (*COUNTS, "zero")
    found = {key: _checked(key, value, NAMED) for key, value in words.items()}
    return Pins(**{key: int(word) if key in numbers else word for key, word in found.items()})  # type: ignore[arg-type]


def read_implementation(words: Mapping[str, str]) -> Implementation | None:
    """Return the implementation that words describe; None where none of them does: it is ours.

    Raises:
        PlanError: one sentence with the word, its value and what it may be.
    """
    found = {key: _checked(key, value, OTHERS) for key, value in words.items()}
    return Implementation(**found) if found else None


def _checked(key: str, value: str, named: Mapping[str, tuple[str, ...]]) -> str:
    if key == "replicas":
        if not re.fullmatch(r"[1-9]\d{0,5}(\+[1-9]\d{0,5})*", value):
            raise PlanError(
                f"--pin replicas must be the ranks of each replica, as 4+3, but is '{value}'"
            )
    elif key in named:
        if value not in named[key]:
            raise PlanError(
                f"--pin {key} must be one of {', '.join(named[key])}, but is '{value}' instead"
                f"{did_you_mean(value, named[key])}"
            )
    elif key not in COUNTS:
        raise PlanError(
            f"--pin does not know '{key}'{did_you_mean(key, (*named, *COUNTS, 'replicas'))}"
        )
    elif not value.isdecimal() or not 1 <= int(value) <= LARGEST:
        raise PlanError(
            f"--pin {key} must be a whole number of at least 1, at most {LARGEST}, but is '{value}'"
        )
    return value
