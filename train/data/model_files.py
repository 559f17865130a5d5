"""What a model's folder really holds, by the headers of its safetensors files; no torch is needed.

config.json says what a model should be, the headers say what is there. Where the two differ, the
headers are right, and the folder is refused before anything is loaded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from train.errors import ModelError
from train.planning.shape import Shape

FLOATS = ("F64", "F32", "F16", "BF16")
PACKED = re.compile(r"[IU](8|16|32)$|F[468](_|$)")  # types of packed weights
# Parts of adapters, and of modules that adapters wrap.
ADAPTED = re.compile(r"\.(lora_\w+|base_layer|modules_to_save|original_module)\.?")
EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings)\.weight$")
POSITIONS = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings)\.weight$")
# Parts of a model of text and images or sound that are not its text part.
OTHER_PARTS = re.compile(r"(^|\.)(visual|vision\w*|audio\w*|image\w*|multi_modal\w*|mm_\w+)\.")
# What old files hold and modules compute: masks, positions and frequencies.
COMPUTED = re.compile(r"(inv_freq|position_ids|attn\.bias|attention\.bias|masked_bias)$")
QUANTIZED = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
# What is possible instead, by the method that config.json names.
_SMALL = "with --use-lora --quantize nf4 that takes no more memory"
_WHOLE = (
    "load it by transformers' {} with dequantize=True and save it whole, then give that; "
    f"{_SMALL}"
)
WAYS = {
    "": f"give the model that it was made from; {_SMALL}",
    "fp8": _WHOLE.format("FineGrainedFP8Config"),
    "mxfp4": _WHOLE.format("Mxfp4Config"),
}
CLOSE = 0.03  # of the parameters: buffers that some files hold, and norms of rare kinds
LARGEST_HEADER = 1 << 28  # bytes; the safetensors library refuses more than 100 MB


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies, and its type (as `BF16`) and shape by the file's header."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of a folder's safetensors files, by name.

    Raises:
        ModelError: the index names a file that is missing, or a file is damaged.
    """
    index, alone = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if not index.exists():
        files = [alone] if alone.exists() else sorted(folder.glob("*.safetensors"))
        return {key: found for file in files for key, found in _header(file).items()}
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = [folder / name for name in sorted(set(named.values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} names no files ({error!r}): copy the model again") from None
    for file in files:
        if not file.is_file():
            raise ModelError(f"{index} names {file.name!r}, which is missing: copy the whole model")
    if alone.exists() and alone not in files:  # transformers would read it instead
        raise ModelError(f"{folder} holds {alone.name} beside {index.name}: remove the older model")
    found = {file.name: _header(file) for file in files}
    for key, name in named.items():
        if key not in found[name]:
            raise ModelError(f"{index} says that {name!r} holds {key!r}, but it lacks it: copy it")
    return {key: found[name][key] for key, name in named.items()}


def _header(path: Path) -> dict[str, StoredTensor]:
    """Read a file's header, and see to it that the file is as long as it says."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if start == b"version ":
                raise ValueError("it is a Git LFS pointer: run 'git lfs pull' there")
            size = int.from_bytes(start, "little")
            if size > LARGEST_HEADER:
                raise ValueError("it does not begin as a safetensors file")
            content = json.loads(file.read(size))
        content.pop("__metadata__", None)
        found = {
            str(key): StoredTensor(path, str(entry["dtype"]), tuple(map(int, entry["shape"])))
            for key, entry in content.items()
        }
        end = max((int(entry["data_offsets"][1]) for entry in content.values()), default=0)
        if path.stat().st_size != 8 + size + end:
            raise ValueError(f"it has {path.stat().st_size} bytes instead of {8 + size + end}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(f"{path} is damaged ({error}): copy the model again") from None
    return found


def require_model(folder: Path) -> None:
    """Refuse an adapter that is named as a model, or that lies beside one.

    Raises:
        ModelError: it names the adapter's base model.
    """
    path = folder / "adapter_config.json"
    if not path.exists():
        return
    try:
        base = repr(json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        base = "its base model"
    if (folder / "config.json").exists():
        raise ModelError(
            f"{folder} holds an adapter (adapter_config.json) beside a model, into which it would "
            "be loaded: move the adapter's files away, or merge it and give the merged model"
        )
    raise ModelError(
        f"{folder} is an adapter of {base}, not a model: give --model-name-or-path the base model, "
        "or the two merged (anyrank export RUN --merge-lora)"
    )


def require_trainable(
    folder: Path, config: Mapping[str, Any], shape: Shape, block_size: int
) -> tuple[Shape, tuple[str, ...]]:
    """Refuse what cannot be trained, by config.json and by what the files hold.

    Returns:
        The shape, with as many parameters as the files hold, and sentences about what may surprise.

    Raises:
        ModelError: the model is quantized, larger than its config says, or has fewer positions
            than a sample may have.
    """
    tensors = stored_tensors(folder)
    if adapted := next((key for key in tensors if ADAPTED.search(key)), None):
        raise ModelError(
            f"{folder} holds an adapter's weights ('{adapted}'): give --model-name-or-path a whole "
            "model, with the adapter merged or moved away"
        )
    _refuse_quantized(folder, config, tensors)
    _refuse_other_embedding(shape, tensors)
    shape, told = _fitted(folder, shape, tensors)
    asked = config.get("attn_implementation") or config.get("_attn_implementation")
    said = f"the model's config asks for {asked!r} attention, but the run chooses its own"
    told += ((said,) if asked else ()) + _positions(folder, config, tensors, block_size)
    return shape, told


def rounded(folder: Path, precision: str) -> tuple[str, ...]:
    """Say that a run rounds the weights of a folder, whose types hold more than its own does."""
    kept = {"bf16": ("BF16",), "fp16": ("F16",)}.get(precision, FLOATS[1:])
    stored = stored_tensors(folder).items()
    weights = [one for key, one in stored if not (COMPUTED.search(key) or OTHER_PARTS.search(key))]
    held = {one.dtype for one in weights} & ({*FLOATS} - {*kept})
    if not held:
        return ()
    return (
        f"weights of {folder} are {' and '.join(sorted(held))}: the run begins with them rounded "
        f"to {precision}, and saves the model so"
        + ("; --precision fp32 does not" if precision != "fp32" else ""),
    )


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a config.json that describes the language model."""
    parts = (config.get(name) for name in ("text_config", "llm_config", "language_config"))
    return next((part for part in parts if isinstance(part, dict)), config)


def _refuse_quantized(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> None:
    names = ("quantization_config", "compression_config")
    parts = (config, text_part(config))
    held = [part[name] for part in parts for name in names if part.get(name) is not None]
    said = held[0] if held else None
    method = said.get("quant_method", "unnamed") if isinstance(said, dict) else said
    files = [name for name in QUANTIZED if (folder / name).exists()]
    packed = [
        (key, one.dtype)
        for key, one in tensors.items()
        if PACKED.match(one.dtype) and 1 <= len(one.shape) <= 3 and one.elements > 1
    ]
    if not (method or files or packed):
        return
    proof = f"{packed[0][0]!r} is {packed[0][1]}" if packed else ", ".join(files) or "config.json"
    raise ModelError(
        f"{folder} is quantized ({method or proof}), and what is trained must not be: "
        f"{WAYS.get(str(method), WAYS[''])}"
        + ("" if packed else f"; if its weights are whole, remove that from {proof}")
    )


def _refuse_other_embedding(shape: Shape, tensors: Mapping[str, StoredTensor]) -> None:
    found = [(key, one) for key, one in tensors.items() if EMBEDDING.search(key)]
    if len(found) == 1 and len(found[0][1].shape) == 2 and found[0][1].shape[0] != shape.vocab:
        key, one = found[0]
        raise ModelError(
            f"'{key}' in {one.file} has shape {list(one.shape)}, but by config.json it has "
            f"{shape.vocab} rows: set vocab_size to {one.shape[0]} there if tokens were added, or "
            "copy the whole model"
        )


def _fitted(
    folder: Path, shape: Shape, tensors: Mapping[str, StoredTensor]
) -> tuple[Shape, tuple[str, ...]]:
    """Return the shape with as many parameters as the files hold: its MLP is made to fit."""
    held = sum(
        one.elements
        for key, one in tensors.items()
        if one.dtype in FLOATS
        and len(one.shape) <= 3  # masks that old files hold have four
        and not OTHER_PARTS.search(key)
        and not (shape.tied and key.endswith("lm_head.weight"))
    )
    off = held / shape.parameters - 1
    if off > 0.5 and held > 1.5 * shape.parameters + shape.vocab * shape.hidden:
        raise ModelError(
            f"{folder} holds {held / 1e9:.2f} billion parameters, but by its config.json a dense "
            f"model has {shape.parameters / 1e9:.2f} billion: a mixture of experts, or a kind that "
            "is not known, cannot be trained; choose a dense model"
        )
    if abs(off) <= CLOSE:
        return shape, ()
    row = shape.layers * shape.hidden * (3 if shape.gated else 2)
    wide = shape.ffn + round((held - shape.parameters) / row)
    return replace(shape, ffn=max(1, wide)), (
        f"planned for the {held:,} parameters that {folder} holds: what is known of its kind comes "
        f"to {shape.parameters:,}",
    )


def _positions(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], block_size: int
) -> tuple[str, ...]:
    part = text_part(config)
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    said = [part[name] for name in names if isinstance(part.get(name), int) and part[name] > 0]
    tables = [
        one.shape[0]
        for key, one in tensors.items()
        if POSITIONS.search(key) and len(one.shape) == 2 and not OTHER_PARTS.search(key)
    ]
    fixed = part.get("model_type") in ("gptj", "codegen", "mpt", "gpt_neo", "ctrl")
    limit = min([*tables, *said[:1]], default=block_size)
    if block_size <= limit:
        return ()
    if tables or fixed:
        raise ModelError(
            f"--block-size {block_size} is beyond the {limit} positions that the model in {folder} "
            f"has: give --block-size {limit}"
        )
    return (
        f"--block-size {block_size} is beyond the {limit} positions that the model was made for, "
        "by its config.json",
    )
