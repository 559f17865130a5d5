"""index.json: what a checkpoint holds, of which step, and which runs may go on from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from train.checkpoint.cut import Cut
from train.checkpoint.identity import RunFingerprint
from train.checkpoint.slices import ShardRef, TensorMetadata, patiently
from train.checkpoint.tensorfile import SIZES
from train.errors import CheckpointError

FORMAT, READABLE = 2, (1, 2)
# What index.json holds, each of just this type; no number is below 0.
_KINDS = {
    "step": int, "world_size": int, "identity": dict, "terms": dict, "record": dict,
    "tensors": dict, "format": int,
}  # fmt: skip


@dataclass(frozen=True)
class Index:
    """A checkpoint's table of contents.

    `run` says which runs may resume from it; `provenance` is for people: attempt, host, time (in
    seconds since the epoch) and versions.
    """

    step: int
    world_size: int
    run: RunFingerprint
    provenance: Mapping[str, Any]
    tensors: Mapping[str, TensorMetadata]

    def to_json(self) -> str:
        """Return the text of index.json."""
        content = {
            "step": self.step,
            "world_size": self.world_size,
            "identity": self.run.must_match,
            "terms": self.run.may_differ,
            "record": self.provenance,
            "tensors": {name: asdict(tensor) for name, tensor in self.tensors.items()},
            "format": FORMAT,
        }
        return json.dumps(content, separators=(",", ":"))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Index:
        """Read the object that index.json holds.

        Raises:
            KeyError, TypeError, ValueError: it is not what `to_json` writes.
        """
        if content.keys() != _KINDS.keys():
            raise ValueError(f"it has the keys {', '.join(map(str, content))}")
        for key, kind in _KINDS.items():
            if type(content[key]) is not kind or (kind is int and content[key] < 0):
                raise ValueError(f"its {key} is {str(content[key])[:60]!r}")
        return cls(
            step=content["step"],
            world_size=content["world_size"],
            run=RunFingerprint(content["identity"], content["terms"]),
            provenance=content["record"],
            tensors={name: _tensor(value) for name, value in content["tensors"].items()},
        )


def read_index(folder: Path) -> Index:
    """Read a checkpoint's index and check it against COMPLETE and its schema.

    Raises:
        CheckpointError: it is damaged; the text says how.
    """
    text = patiently((folder / "index.json").read_bytes)
    mark = patiently((folder / "COMPLETE").read_bytes).decode(errors="replace").strip()
    if xxhash.xxh3_64_hexdigest(text) != mark:
        raise CheckpointError("index.json is not what COMPLETE vouches for")
    with _damage("index.json"):
        content = json.loads(text)
        if content["format"] not in READABLE:
            raise CheckpointError(
                f"it has format {content['format']}, but this version reads "
                f"{' and '.join(map(str, READABLE))}"
            )
        return Index.from_json(content)


def _tensor(value: Mapping[str, Any]) -> TensorMetadata:
    slices = tuple(
        ShardRef(**{**shard, "cut": Cut.of(shard.get("cut"), value["shape"])})
        for shard in value["slices"]
    )
    for shard in slices:
        if shard.file != Path(shard.file).name or value["dtype"] not in SIZES:
            raise ValueError(f"'{shard.file}' is no file name")
    return TensorMetadata(tuple(value["shape"]), value["dtype"], tuple(value["kinds"]), slices)


@contextmanager
def _damage(what: str) -> Iterator[None]:
    """Turn what a damaged file can cause into one error."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{what} is malformed: {error}") from None
