"""Which parts of a plan are fixed: by the ds_config, and over it by the command line."""

from __future__ import annotations

from collections.abc import Mapping

from train.config import RunConfig
from train.errors import PlanError, did_you_mean
from train.planning.dsconfig import DsConfig
from train.planning.plan import OFFLOAD, RECOMPUTE

NAMED = {"recompute": RECOMPUTE, "offload": OFFLOAD, "zero": ("0", "1", "2", "3")}
# To describe other people's runs: their kernels, the type that they add gradients in, whether the
# ranks of tensor parallelism divide the tokens of norms among them (Megatron's sequence
# parallelism), and whether ZeRO divides among all replicas or those of a host (hybrid sharding).
KERNELS = {
    "attention": ("dense", "flash"),
    "kernels": ("plain", "fused"),
    "gradients": ("bf16", "fp32"),
    "sequence": ("whole", "tensor"),
    "shards": ("all", "host"),
}
DEGREES = ("dp", "tp", "pp", "sp")
PREDICTED_ONLY = ("tp", "pp", "sp")
LARGEST = 10**12


def merge_pins(config: RunConfig, ds: DsConfig) -> dict[str, str]:
    """Return the pins of a run, the command line's over the file's.

    Raises:
        PlanError: a value that no plan can have, ZeRO-0 in bf16, or a degree that is not run.
    """
    pins = {**ds.pins, **config.pins}
    check_pins(pins)
    for key in PREDICTED_ONLY:
        if pins.get(key, "1") != "1":
            raise PlanError(
                f"--pin {key}={pins[key]} cannot be run: 'anyrank plan' predicts {key}, but a run "
                f"has {key}=1; leave it out"
            )
    if pins.get("zero") == "0" and config.model.precision == "bf16":
        raise PlanError(
            "ZeRO stage 0 is not offered in bf16, where it would accumulate in bf16: "
            "pin zero to 1, 2 or 3, or use --precision fp32"
        )
    return pins


def check_pins(pins: Mapping[str, str]) -> None:
    """Refuse a pin whose value no plan can have.

    Raises:
        PlanError: one sentence with the pin, its value and what it may be.
    """
    named: Mapping[str, tuple[str, ...]] = NAMED | KERNELS
    for key, value in pins.items():
        if key in named:
            if value not in named[key]:
                raise PlanError(
                    f"--pin {key} must be one of {', '.join(named[key])}, but is '{value}' instead"
                    f"{did_you_mean(value, named[key])}"
                )
        elif key in (*DEGREES, "micro_tokens"):
            if not value.isdecimal() or not 1 <= int(value) <= LARGEST:
                raise PlanError(
                    f"--pin {key} must be a whole number of at least 1, at most {LARGEST}, "
                    f"but is '{value}'"
                )
        else:
            keys = (*named, *DEGREES, "micro_tokens")
            raise PlanError(f"--pin does not know '{key}'{did_you_mean(key, keys)}")
