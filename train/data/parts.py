"""What is made of a dataset so far: a file for each block, so that interrupted work is kept.

A block's number and rows follow from the source alone, and neither from the number of processes nor
from where an earlier start was interrupted.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from train.data.store import Part

_KINDS = {"lengths": "i", "loss_tokens": "i", "drawn": "Q"}


@dataclass(frozen=True)
class Parts:
    """A folder of finished blocks."""

    folder: Path

    @classmethod
    def open(cls, folder: Path, terms: object) -> Parts:
        """Return the blocks that were made under the same `terms`, others cleared away."""
        about = folder / "about.json"
        wanted = json.dumps(terms)
        if not about.exists() or about.read_text(encoding="utf-8") != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700, parents=True)
            about.write_text(wanted, encoding="utf-8")
        return cls(folder)

    def told(self, number: int) -> dict[str, Any] | None:
        """Return what became of the rows of a block; None where it is not made, or not whole."""
        try:
            with np.load(self._path(number), allow_pickle=False) as held:
                told: dict[str, Any] = json.loads(str(held["told"]))
                return told
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def write(self, number: int, part: Part, told: dict[str, Any]) -> None:
        """Write a block's samples, and what became of its rows; whole, it gets its name."""
        draft = self.folder / f"{number}.draft"
        arrays: dict[str, Any] = {
            name: np.array(getattr(part, name), kind) for name, kind in _KINDS.items()
        }
        arrays |= {
            name: np.frombuffer(getattr(part, name), np.uint8) for name in ("tokens", "mask")
        }
        with draft.open("wb") as file:
            np.savez(file, told=np.array(json.dumps(told)), **arrays)
        draft.rename(self._path(number))

    def take(self, number: int) -> Part:
        """Return a block's samples and clear its file away.

        Raises:
            OSError: the file is not whole.
        """
        path = self._path(number)
        try:
            with np.load(path, allow_pickle=False) as held:
                part = Part(
                    held["tokens"].tobytes(),
                    held["mask"].tobytes(),
                    **{name: array(kind, held[name].tobytes()) for name, kind in _KINDS.items()},
                )
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            path.unlink(missing_ok=True)
            raise OSError(f"{path} is damaged: {error}") from None
        path.unlink()
        return part

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.npz"
