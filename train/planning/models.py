"""Which model a text names: a folder, a config.json, a built-in name, or sizes written out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.errors import ModelError, PlanError, did_you_mean
from train.planning import kinds
from train.planning.catalog import built_in
from train.planning.families import SPECIAL, require_grouped, shape_of
from train.planning.shape import Shape

# No part of a written model is larger: beyond it, figures stop meaning anything.
_LARGEST = 10**7


def find_shape(text: str) -> Shape:
    """Return the shape of a folder, a config.json, a built-in name or `layers=32,hidden=4096,…`.

    Raises:
        PlanError: nothing of the kind.
        ModelError: a config.json that cannot be understood.
    """
    if "=" in text and not Path(text).exists():
        return written(text)
    config = named_config(text)
    return built_in(text) if config is None else planned_shape(config)


def named_config(text: str) -> Mapping[str, Any] | None:
    """Return the config.json of a folder, or that a path names; None where there is no such path.

    Raises:
        ModelError: a folder without one, or one that cannot be read.
    """
    path = Path(text)
    if text and path.is_dir():
        path = path / "config.json"
        if not path.is_file():
            raise ModelError(f"the folder {text} has no config.json: name a model's folder")
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} must hold one JSON object: name a Hugging Face model folder")
    return content


def planned_shape(config: Mapping[str, Any]) -> Shape:
    """Return the shape that a config.json describes, which is all that is known of the model.

    Raises:
        ModelError: as `shape_of`; or sizes alone do not describe it.
    """
    shape = shape_of(config)
    kinds.refuse_strange(config)
    return shape


def remarks(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a plan from a config.json takes for granted, a sentence each."""
    return tuple(kinds.remarks(config, SPECIAL))


def written(text: str) -> Shape:
    """Read `layers=32,hidden=4096,heads=32,kv_heads=8,ffn=14336,vocab=32768[,gated=0][,tied=1]`.

    A gated MLP stands for the Llama layout (RMS norms, SiLU), a plain one for GPT's (layer norms,
    GELU).

    Raises:
        PlanError: a missing, unknown or malformed part.
    """
    need = ("layers", "hidden", "heads", "ffn", "vocab")
    may = ("kv_heads", "head_dim", "gated", "tied", "window", "positions", "bias")
    found: dict[str, int] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        if key not in need + may:
            hint = did_you_mean(key, need + may) or f"; its parts are {', '.join(need + may)}"
            raise PlanError(f"a model has no '{key}'{hint}")
        if key in found:
            raise PlanError(f"the model '{text}' gives {key} twice: keep one")
        low = 0 if key in ("gated", "tied", "bias", "positions") else 1
        if not value.isdecimal() or not low <= int(value) <= _LARGEST:
            raise PlanError(
                f"{key} must be a whole number from {low} to {_LARGEST}, but is '{value}'"
            )
        found[key] = int(value)
    missing = [key for key in need if key not in found]
    if missing:
        raise PlanError(
            f"the model '{text}' lacks {', '.join(missing)}: write for example "
            "layers=32,hidden=4096,heads=32,ffn=14336,vocab=32768"
        )
    heads, bias, gated = found["heads"], bool(found.get("bias", 0)), bool(found.get("gated", 1))
    return require_grouped(Shape(
        name=text, layers=found["layers"], hidden=found["hidden"], heads=heads,
        kv_heads=found.get("kv_heads", heads), ffn=found["ffn"], vocab=found["vocab"],
        head_dim=found.get("head_dim") or _head_dim(found["hidden"], heads),
        gated=gated, norm="rms" if gated else "layer", activation="silu" if gated else "gelu",
        tied=bool(found.get("tied", 0)), window=found.get("window"),
        positions=found.get("positions", 0),
        bias_qkv=bias, bias_out=bias, bias_mlp=bias, norm_bias=bias,
    ), heads)  # fmt: skip


def _head_dim(hidden: int, heads: int) -> int:
    """Return the width of a head where it is not given: heads share the hidden width evenly."""
    if hidden % heads:
        raise PlanError(
            f"hidden={hidden} cannot be shared by heads={heads}: one must divide the other, "
            "or head_dim be given"
        )
    return hidden // heads
