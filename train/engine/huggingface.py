"""A checkpoint written as a Hugging Face folder, one tensor in memory at a time.

Each weight is read from the checkpoint, where its checksum is verified, cast to the run's type,
named as in the model's own files, and written; then all is read back and compared.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from train.checkpoint.index import Index, read_index
from train.checkpoint.slices import Reader
from train.checkpoint.tensorfile import TensorSpec, write_header
from train.config import LoraConfig, ModelConfig
from train.engine import lora
from train.engine.blank import DTYPES as PRECISIONS
from train.engine.blank import blank_model, trains_a_part
from train.engine.saver import DTYPES
from train.engine.weights import keys_of, stored_form, weight_files
from train.errors import CheckpointError

LARGEST_FILE = 4 << 30  # bytes
TORCH = {name: dtype for dtype, name in DTYPES.items()}
PREFIX = "base_model.model."  # what peft puts before a parameter's name


@dataclass(frozen=True)
class Exporter:
    """A checkpoint and the model that it belongs to, without its weights (on `meta`).

    `files` maps the base model's tensors to their files; `reader` keeps the checkpoint's open.
    """

    index: Index
    reader: Reader
    files: Mapping[str, Path]
    base: Path
    model: PreTrainedModel
    config: ModelConfig

    def values(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """Return a weight, trained, merged or as it was in the base model, in the run's type.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        dtype = PRECISIONS[self.config.precision]
        if name in self.index.tensors:
            return self.stored(name, dtype)
        files = self.files
        keys = keys_of(self.model, name, tuple(shape), files)
        if len(keys) != 1:
            raise CheckpointError(
                f"{name} is frozen, and {self.base} holds it in another form ({', '.join(keys)}): "
                "export without --merge-lora"
            )
        with safe_open(files[keys[0]], "pt") as file:
            frozen = torch.as_tensor(file.get_tensor(keys[0]))
        stem = PREFIX + name.removesuffix(".weight")
        if f"{stem}.lora_A.default.weight" not in self.index.tensors:
            return frozen.to(dtype) if frozen.is_floating_point() else frozen
        return (frozen.float() + self.delta(name, stem)).to(dtype)

    def delta(self, name: str, stem: str) -> torch.Tensor:
        """Return what the adapter adds to a weight, in fp32."""
        adapter = self.config.lora
        assert adapter is not None
        down, up = (
            self.stored(f"{stem}.lora_{half}.default.weight", torch.float32) for half in "AB"
        )
        change = (up @ down) * (adapter.alpha / adapter.r)
        transposed = isinstance(self.model.get_submodule(name.removesuffix(".weight")), Conv1D)
        return change.T if transposed else change

    def stored(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor of the checkpoint; a parameter is cast to `dtype`."""
        entry = self.index.tensors[name]
        own = TORCH[entry.dtype]
        kind = "master" if "master" in entry.kinds else entry.kinds[0]
        found = torch.empty(entry.elements, dtype=dtype if kind == "master" else own)
        for first, raw in self.reader.read(name, kind, 0, entry.elements):
            part = torch.from_numpy(raw).view(own)
            found[first : first + len(part)].copy_(part)
        return found.view(entry.shape)

    def named(self) -> dict[str, torch.Tensor]:
        """Return everything that the model's files hold, without values."""
        stored = self.model.state_dict().keys()
        buffers = {name: value for name, value in self.model.named_buffers() if name in stored}
        return dict(self.model.named_parameters()) | buffers

    def written(self, name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return a weight under the names, and in the form, that the model's files have."""
        return stored_form(self.model, name, value)

    def kind_of(self, value: torch.Tensor) -> TensorSpec:
        """Return the type that a weight has in the files."""
        dtype = PRECISIONS[self.config.precision] if value.is_floating_point() else value.dtype
        return TensorSpec(DTYPES[dtype], tuple(value.shape))


def open_exporter(checkpoint: Path, base: Path, config: ModelConfig) -> Exporter:
    """Open a checkpoint of the model in `base`.

    Raises:
        CheckpointError: its index is damaged.
    """
    index = read_index(checkpoint)
    model = blank_model(base, config)
    reader = Reader(checkpoint, index.tensors)
    return Exporter(index, reader, weight_files(base), base, model, config)


def export_model(exporter: Exporter, folder: Path, part: int = 0, parts: int = 1) -> None:
    """Write and check the files number part, part + parts, … of the whole model, into `folder`.

    Part 0 also writes the index and the configuration. With an adapter, it is merged.

    Raises:
        CheckpointError: a weight is missing or damaged, or was not written as it is.
        OSError: the folder cannot be written.
    """
    shards = tuple(_shards(exporter))
    names = _file_names(len(shards))
    for number in range(part, len(shards), parts):
        _write(exporter, folder / names[number], shards[number])
        _check(exporter, folder / names[number], shards[number])
    if part == 0:
        _copy_configuration(exporter, folder)
        if len(shards) > 1:
            _write_index(exporter, folder, dict(zip(names, shards, strict=True)))


def export_adapter(exporter: Exporter, folder: Path, config: LoraConfig, seed: int) -> None:
    """Write the adapter alone, as peft does, into `folder`.

    Raises:
        CheckpointError: a weight is missing or damaged, or was not written as it is.
    """
    module: Any = lora.attach(exporter.model, config, seed, lora.DropoutContext())
    dtype = PRECISIONS[exporter.config.precision]
    state = {name: exporter.stored(name, dtype) for name in exporter.index.tensors}
    module.save_pretrained(folder, state_dict=state)
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = exporter.config.hub or str(exporter.base)
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
    wanted = {name.replace(".default", ""): value for name, value in state.items()}
    if found.keys() != wanted.keys():
        raise CheckpointError(f"{folder} does not hold the adapter's weights: peft names them anew")
    for name, value in wanted.items():
        _require_equal(found[name], value, name, folder)


def _shards(exporter: Exporter) -> Iterator[dict[str, torch.Tensor]]:
    """Divide what is to be written into files of at most LARGEST_FILE where that is possible."""
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, value in exporter.named().items():
        more = exporter.kind_of(value).bytes
        if shard and size + more > LARGEST_FILE:
            yield shard
            shard, size = {}, 0
        shard[name] = value
        size += more
    yield shard


def _file_names(count: int) -> tuple[str, ...]:
    if count == 1:
        return ("model.safetensors",)
    return tuple(f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1))


def _kinds(exporter: Exporter, shard: Mapping[str, torch.Tensor]) -> dict[str, TensorSpec]:
    return {
        key: exporter.kind_of(form)
        for name, value in shard.items()
        for key, form in exporter.written(name, value.to("meta")).items()
    }


def _write(exporter: Exporter, path: Path, shard: Mapping[str, torch.Tensor]) -> None:
    with path.open("wb") as file:
        places = write_header(file, _kinds(exporter, shard), {"format": "pt"})
        for name, empty in shard.items():
            value = exporter.values(name, empty.shape)
            for key, form in exporter.written(name, value).items():
                file.seek(places[key].start)
                file.write(form.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _check(exporter: Exporter, path: Path, shard: Mapping[str, torch.Tensor]) -> None:
    with safe_open(path, "pt") as file:
        for name, empty in shard.items():
            value = exporter.values(name, empty.shape)
            for key, form in exporter.written(name, value).items():
                _require_equal(torch.as_tensor(file.get_tensor(key)), form, key, path)


def _require_equal(found: torch.Tensor, wanted: torch.Tensor, name: str, path: Path) -> None:
    alike = found.dtype == wanted.dtype and found.shape == wanted.shape
    if not (alike and torch.equal(_bits(found), _bits(wanted))):
        raise CheckpointError(
            f"'{name}' in {path} is not what the checkpoint holds: the disk does not keep what is "
            "written to it"
        )


def _bits(values: torch.Tensor) -> torch.Tensor:
    """Return a tensor's bytes: what is no number equals itself there, too."""
    return values.contiguous().reshape(-1).view(torch.uint8)


def _copy_configuration(exporter: Exporter, folder: Path) -> None:
    """Copy what is not weights: the configuration, as it was but for the type, and code."""
    config = json.loads((exporter.base / "config.json").read_text(encoding="utf-8"))
    if trains_a_part(exporter.base, exporter.model):
        # The whole would have its other parts from nowhere: what is saved is the text model.
        own = exporter.model.config.to_dict()
        config = own | {"architectures": [type(exporter.model).__name__]}
    config.pop("torch_dtype", None)
    config["dtype"] = str(PRECISIONS[exporter.config.precision]).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for path in (*exporter.base.glob("*.py"), exporter.base / "generation_config.json"):
        if path.is_file():
            shutil.copy(path, folder)


def _write_index(
    exporter: Exporter, folder: Path, shards: Mapping[str, Mapping[str, torch.Tensor]]
) -> None:
    kinds = {file: _kinds(exporter, shard) for file, shard in shards.items()}
    content = {
        "metadata": {"total_size": sum(k.bytes for some in kinds.values() for k in some.values())},
        "weight_map": {key: file for file, some in kinds.items() for key in some},
    }
    text = json.dumps(content, indent=2) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
