"""A ds_config file, read strictly: what it pins, and what DeepSpeed is to be told besides."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from train.config import RunConfig
from train.errors import ConfigError, did_you_mean
from train.planning.plan import sums_in_fp32
from train.planning.schema import ALIASES, ROOT, ZERO, Kept, Refused, Section, Stated
from train.planning.stated import differences, not_used, unwritten

HPZ = "zero_hpz_partition_size"
_PLANNED = ("zero_optimization", "anyrank", "activation_checkpointing")
_STATED = ("optimizer", "scheduler", "fp16")  # nothing of these goes to DeepSpeed


@dataclass(frozen=True)
class DsConfig:
    """A ds_config after reading.

    `pins` are keys of a plan with their values, as `--pin` would give them; `extra` holds the
    remaining keys, checked, to be handed to DeepSpeed over the planner's own; `notice` says what
    the file names and leaves to others, empty if there is no such thing.
    """

    path: str = "none"
    pins: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    notice: str = ""


@dataclass
class Sifted:
    """What was found in a file beside what is kept of it."""

    errors: list[str] = field(default_factory=list)  # each the second half of a sentence
    left: list[str] = field(default_factory=list)  # names of what is "auto" or null
    stated: dict[str, Any] = field(default_factory=dict)  # by name


def read_ds_config(path: Path, run: RunConfig | None = None) -> DsConfig:
    """Read and check one file, and compare it with the arguments of a run.

    Raises:
        ConfigError: no such file, not JSON, a duplicate, unknown, removed, refused or
            contradictory key, or a value of the wrong kind or other than the run's; one sentence
            that names the file and all such keys.
    """
    content, found = _parse(path, _text(path)), Sifted()
    kept = _sift(content, ROOT, "", found)
    if run is not None:
        found.errors += differences(found.stated, found.left, run)
        found.errors += _unfit_stage(kept, run)
    try:
        pins, extra = _derive(kept)
    except ConfigError as error:
        found.errors.append(str(error))
    if found.errors:
        raise ConfigError(f"{path} {'; and '.join(found.errors)}")
    return DsConfig(str(path), pins, _whole(extra), _notice(path, found, run))


def _notice(path: Path, found: Sifted, run: RunConfig | None) -> str:
    left = dict.fromkeys(_short(name) for name in found.left)
    unused = [] if run is None else not_used(found.stated, run)
    stated = (_short(name) for name in found.stated if name not in unused)
    agreed = [name for name in dict.fromkeys(stated) if name not in left]
    parts = [f"{', '.join(left)} left to the planner and the arguments"] if left else []
    parts += [f"{', '.join(agreed)} as the arguments say"] if agreed else []
    parts += [f"{', '.join(unused)} not used, since no step depends on it"] if unused else []
    missing = [] if run is None else unwritten(found.stated, found.left, run)
    parts += [f"of the scheduler, which does not say so, {', '.join(missing)}"] if missing else []
    return f"{path}: {'; '.join(parts)}" if parts else ""


def _unfit_stage(kept: Mapping[str, Any], run: RunConfig) -> list[str]:
    """Refuse a stage in which the run's precision would add gradients up in 16 bits."""
    stage, precision = kept.get("zero_optimization", {}).get("stage"), run.model.precision
    if stage is None or "zero" in run.pins or sums_in_fp32(int(stage), precision):
        return []
    return [
        f"sets 'zero_optimization.stage' to {stage}, where gradients would be added up in "
        f"{precision}: set it to 1, 2 or 3, or leave it out"
    ]


def _short(name: str) -> str:
    """Name a whole section where nothing of it is handed on."""
    first = name.partition(".")[0]
    return first if first in _STATED else name


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
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the ds_config '{path}' cannot be read: {error}; save it as UTF-8"
        ) from None
    except OSError as error:
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
        noted = text[error.pos :].startswith(("//", "#", "/*"))
        raise ConfigError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}: "
            + ('JSON has no comments, so write it as "_comment": "…"' if noted else "correct it")
        ) from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply to be a ds_config") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold one JSON object, but holds {_shown(content)} instead")
    return content


def _sift(
    content: Mapping[str, Any], section: Section, prefix: str, found: Sifted
) -> dict[str, Any]:
    """Return what is kept of a section, without comments; note in `found` what is not."""
    kept: dict[str, Any] = {}
    for key, value in content.items():
        entry, name = section.keys.get(key), prefix + key
        if entry is None:
            if not key.startswith(("_", "#", "//")) and key != "comment":
                found.errors.append(f"has the unknown key '{name}'{_hint(key, value, section)}")
        elif value in ("auto", None):
            found.left.append(name)
        elif isinstance(entry, Refused):
            if not entry.says_nothing(value):
                found.errors.append(f"sets '{name}': {entry.instead}")
        elif isinstance(entry, Stated):
            found.stated[name] = value
        elif isinstance(entry, Kept):
            if value == entry.unset:
                found.left.append(name)
            elif _fits(value, entry):
                kept[key] = value
            else:
                found.errors.append(
                    f"sets '{name}' to {_shown(value)}, but it must be {_expected(entry)}"
                )
        elif not isinstance(value, dict):
            found.errors.append(f"sets '{name}' to {_shown(value)}, but it must be an object")
        elif value.get("device") == "auto":  # what else it says is of an offload that may not be
            found.left.append(name)
        elif inner := _sift(value, entry, name + ".", found):
            kept[key] = inner
    return kept


def _hint(key: str, value: Any, section: Section) -> str:
    near = did_you_mean(key, [k for k, e in section.keys.items() if not isinstance(e, Refused)])
    if near:
        return near
    if section is ROOT and isinstance(value, dict) and set(value) & set(ROOT.keys):
        return ": move what is in it to the top of the file"
    if section is ROOT and (key in ZERO.keys or did_you_mean(key, ZERO.keys)):
        return f": does '{key}' belong in 'zero_optimization'?"
    return ": leave it out"


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


def _derive(content: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the pins, and what DeepSpeed is told besides.

    Raises:
        ConfigError: two keys contradict each other.
    """
    zero = dict(content.get("zero_optimization", {}))
    pins = {key: str(value) for key, value in content.get("anyrank", {}).items()}
    if "stage" in zero:
        pins["zero"] = str(zero.pop("stage"))
    if HPZ in zero:
        pins["hpz"] = str(int(zero.pop(HPZ)))
    checkpointing = content.get("activation_checkpointing", {})
    if any(checkpointing.values()) and pins.setdefault("recompute", "full") == "none":
        raise ConfigError(
            "has an activation_checkpointing section and pins recompute to none: keep one"
        )
    _pin_offload(zero, pins)
    dropped = (*_PLANNED, *_STATED)
    extra: dict[str, Any] = {key: value for key, value in content.items() if key not in dropped}
    return pins, extra | ({"zero_optimization": zero} if zero else {})


def _pin_offload(zero: dict[str, Any], pins: dict[str, str]) -> None:
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
            "offloads parameters but not the optimizer: "
            'add "offload_optimizer": {"device": "cpu"} to zero_optimization'
        )
    offload = "all" if parameters == "cpu" else "optimizer" if optimizer == "cpu" else "none"
    if pins.setdefault("offload", offload) != offload:
        raise ConfigError(
            f"pins offload to {pins['offload']}, but its offload sections say {offload}: keep one"
        )
    stage = pins.get("zero")
    if offload == "all" and stage not in (None, "3"):
        raise ConfigError(
            f"offloads parameters at ZeRO stage {stage}: set zero_optimization.stage to 3"
        )


def _whole(value: Any) -> Any:
    """Turn 5e8, which JSON reads as a float, into the count that it means."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value
