"""Datasets behind a URL, copied to this user's cache: whatever fsspec opens.

s3://bucket/train.jsonl, gs://…, hf://datasets/owner/name/file.csv, https://…, file://…, a file or a
folder; zip://inner.jsonl::s3://bucket/a.zip; a .zip file by its path. A copy is kept for as long as
what it was made of is as it was.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from train.errors import DataError
from train.locking import locked
from train.names import DatasetName
from train.paths import unusable


def fetched(name: DatasetName, cache: Path) -> Path:
    """Return the local copy of a file or a folder that a URL names.

    Raises:
        DataError: there is none, it cannot be read, or the package for it is not installed.
        ConfigError: the cache cannot be written.
    """
    url = name.where if "://" in name.where else f"zip://::{name.path.resolve()}"
    if not name.is_url or ("://" not in name.where and not name.path.exists()):
        raise DataError(f"the dataset '{name.where}' does not exist: check the path")
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        system, root = url_to_fs(url)
        files = dict.fromkeys([root], "") if system.isfile(root) else _inside(system, root)
        if not files:
            raise FileNotFoundError("there is nothing there")
        version = "\n".join([url, *(f"{path} {system.ukey(path)}" for path in sorted(files))])
        place = cache / "fetched" / hashlib.sha256(version.encode()).hexdigest()[:24]
        with locked(place.with_suffix(".lock")):
            if not place.exists():
                _copy(system, files, place)
    except DataError:
        raise
    except ImportError as error:
        raise DataError(
            f"'{name.where}' needs a package that is not installed ({error}): install it, or copy "
            "the data to a file"
        ) from None
    except Exception as error:  # whatever a store, a network or an archive does
        if isinstance(error, OSError) and str(error.filename).startswith(str(cache)):
            raise unusable(cache, error) from None
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the dataset '{name.where}' cannot be fetched ({reason}): check the address and the "
            "rights to read it, or copy the data to a file"
        ) from None
    single = next(iter(files.values())) == ""
    return place / Path(next(iter(files))).name if single else place


def _inside(system: Any, root: str) -> dict[str, str]:
    """Return the files of a folder, each with its path from there."""
    start = root.rstrip("/")
    found: list[str] = system.find(root)
    return {path: path.removeprefix(start).lstrip("/") for path in found}


def _copy(system: Any, files: dict[str, str], place: Path) -> None:
    """Copy files to a new folder, which has its name only when all are there."""
    partial = place.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for path, inner in files.items():
            target = partial / (inner or Path(path).name)
            if not target.resolve().is_relative_to(partial.resolve()):  # a zip may say `../x`
                raise ValueError(f"its file {inner} would lie outside of it")
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with system.open(path, "rb") as there, target.open("wb") as here:
                shutil.copyfileobj(there, here, 1 << 20)
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
