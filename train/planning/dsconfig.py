"""A ds_config file, read strictly: what it pins, and what DeepSpeed is to be told besides."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from train.errors import ConfigError, did_you_mean
from train.planning.schema import ALIASES, ROOT, ZERO, Kept, Refused, Section


@dataclass(frozen=True)
class DsConfig:
    """A ds_config after reading.

    `pins` are keys of a plan with their values, as `--pin` would give them; `extra` holds the
    remaining keys, checked, to be handed to DeepSpeed over the planner's own; `precision` is what
    a bf16 section says, to be compared with `--precision`.
    """

    path: str = "none"
    pins: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    precision: str | None = None


def read_ds_config(path: Path) -> DsConfig:
    """Read and check one file.

    Raises:
        ConfigError: no such file, not JSON, a duplicate, unknown, removed, refused or
            contradictory key, or a value of the wrong kind; one sentence that names file and key.
    """
    content = _parse(path, _text(path))
    _check(path, content, ROOT, "")
    return _derive(path, content)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = sorted(p for p in path.parent.glob("*.json") if p.is_file())
        names = ", ".join(str(p) for p in near[:8])
        hint = did_you_mean(path.name, [p.name for p in near])
        hint = hint or (f"; there are {names}" if names else "; give an existing JSON file")
        raise ConfigError(f"there is no ds_config '{path}'{hint}") from None
    except IsADirectoryError:
        raise ConfigError(f"the ds_config '{path}' is a folder: name a JSON file in it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the ds_config '{path}' cannot be read: {error}") from None


def _parse(path: Path, text: str) -> dict[str, Any]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in items:
            key = ALIASES.get(key, key)
            if key in found:
                raise ConfigError(f"{path} gives '{key}' twice: keep one of the two")
            found[key] = value
        return found

    def constant(word: str) -> NoReturn:
        raise ConfigError(f"{path} has the value {word}, which is not JSON: write a number")

    try:
        content = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply to be a ds_config") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold one JSON object, but holds {_shown(content)} instead")
    return content


def _check(path: Path, content: Mapping[str, Any], section: Section, prefix: str) -> None:
    for key, value in content.items():
        entry = section.keys.get(key)
        name = prefix + key
        if entry is None:
            raise ConfigError(f"{path} has the unknown key '{name}'{_hint(key, section)}")
        if isinstance(entry, Refused):
            raise ConfigError(f"{path} sets '{name}': {entry.instead}")
        if isinstance(entry, Section):
            if not isinstance(value, dict):
                raise ConfigError(
                    f"'{name}' in {path} must be an object, but is {_shown(value)} instead"
                )
            _check(path, value, entry, name + ".")
        else:
            _check_value(path, name, value, entry)


def _hint(key: str, section: Section) -> str:
    near = did_you_mean(key, section.keys)
    if near:
        return near
    if section is ROOT and (key in ZERO.keys or did_you_mean(key, ZERO.keys)):
        return f": does '{key}' belong in 'zero_optimization'?"
    return ": leave it out"


def _check_value(path: Path, name: str, value: Any, entry: Kept) -> None:
    if value == "auto":
        raise ConfigError(f"{path} sets '{name}' to \"auto\": leave it out, the planner sets it")
    expected = _expected(entry)
    if not _fits(value, entry):
        raise ConfigError(f"'{name}' in {path} must be {expected}, but is {_shown(value)} instead")


def _fits(value: Any, entry: Kept) -> bool:
    if entry.kind == "flag":
        return isinstance(value, bool)
    if entry.choices:
        return not isinstance(value, bool) and str(value) in entry.choices
    if entry.kind == "text":
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if not math.isfinite(value):
        return False
    if entry.kind == "count":
        return value == int(value) and value >= entry.low
    return entry.kind == "number" or 0 <= value <= 1


def _expected(entry: Kept) -> str:
    if entry.choices:
        return "one of " + ", ".join(entry.choices)
    kinds = {
        "flag": "true or false",
        "count": f"a whole number of at least {entry.low}",
        "share": "a number from 0 to 1",
        "number": "a number",
        "text": "text",
    }
    return kinds[entry.kind]


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _derive(path: Path, content: Mapping[str, Any]) -> DsConfig:
    zero = dict(content.get("zero_optimization", {}))
    pins = {key: str(value) for key, value in content.get("anyrank", {}).items()}
    if "stage" in zero:
        pins["zero"] = str(zero.pop("stage"))
    if "activation_checkpointing" in content and pins.setdefault("recompute", "full") == "none":
        raise ConfigError(
            f"{path} has an activation_checkpointing section and pins recompute to none: keep one"
        )
    _pin_offload(path, zero, pins)
    bf16 = dict(content.get("bf16", {}))
    enabled = bf16.pop("enabled", None)
    dropped = ("zero_optimization", "anyrank", "activation_checkpointing", "bf16")
    extra: dict[str, Any] = {key: value for key, value in content.items() if key not in dropped}
    extra |= {key: value for key, value in (("zero_optimization", zero), ("bf16", bf16)) if value}
    precision = None if enabled is None else ("bf16" if enabled else "fp32")
    return DsConfig(path=str(path), pins=pins, extra=_whole(extra), precision=precision)


def _pin_offload(path: Path, zero: dict[str, Any], pins: dict[str, str]) -> None:
    """Turn the devices of the two offload sections into one pin; their other keys stay."""
    devices = []
    for name in ("offload_optimizer", "offload_param"):
        section = zero.get(name)
        devices.append(None if section is None else section.get("device", "none"))
        if section is not None:
            zero[name] = {key: value for key, value in section.items() if key != "device"}
            if not zero[name]:
                del zero[name]
    optimizer, parameters = devices
    if devices == [None, None]:
        return
    if parameters == "cpu" and optimizer != "cpu":
        raise ConfigError(
            f"{path} offloads parameters but not the optimizer: "
            'add "offload_optimizer": {"device": "cpu"} to zero_optimization'
        )
    offload = "all" if parameters == "cpu" else "optimizer" if optimizer == "cpu" else "none"
    if pins.setdefault("offload", offload) != offload:
        raise ConfigError(
            f"{path} pins offload to {pins['offload']}, but its offload sections say {offload}: "
            "keep one"
        )
    stage = pins.get("zero")
    if offload == "all" and stage not in (None, "3"):
        raise ConfigError(
            f"{path} offloads parameters at ZeRO stage {stage}: set zero_optimization.stage to 3"
        )


def _whole(value: Any) -> Any:
    """Turn 5e8, which JSON reads as a float, into the count that it means."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value
