"""Where data comes from: local paths against hub names, and what tells one version from another."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.data.configurations import configured_files, missing_part, require_links
from train.data.read import file_format, read_files, read_table
from train.data.rows import Block
from train.data.urls import fetched
from train.errors import DataError, did_you_mean
from train.names import DatasetName
from train.paths import looks_local
from train.text import listed

Key = tuple[tuple[str, ...], ...]
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
PROSE = re.compile(r"(?i)(readme|licen[cs]e|notice|changelog|citation)\b|.*\.(md|py|rst|ipynb)$")
ABOUT = re.compile(r"(?i)dataset_infos?\.json|(readme|licen[cs]e|notice)\.txt")  # no data
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")


def stamp(files: Iterable[Path]) -> Key:
    """Return path, size and times of files: another stamp whenever one was written to.

    The change time cannot be set by a program, so a copy that keeps the old date is noticed, too.
    """
    found = [(path.resolve(), path.stat()) for path in files]
    return tuple(
        (str(path), str(stat.st_size), str(stat.st_mtime_ns), str(stat.st_ctime_ns))
        for path, stat in found
    )


def revision(name: str, kind: str, asked: str | None = None) -> str:
    """Return the hub's commit for a "model" or "dataset"; "offline" where it does not answer.

    `asked`: a branch, a tag or a commit; None: the newest.

    In that case the hub's own libraries are told, too: they would each repeat the question for
    half a minute, and look into their cache only then.

    Raises:
        DataError: the hub answers that there is no such thing, or not for this user.
    """
    from huggingface_hub import HfApi, constants, errors

    try:
        found = HfApi().repo_info(name, repo_type=kind, revision=asked, timeout=10)
        return found.sha or "unknown"
    except errors.RevisionNotFoundError:
        raise DataError(
            f"'{name}' has no revision '{asked}' on the hub: name a branch, a tag or a commit of it"
        ) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        flag = "--dataset-name-or-path" if kind == "dataset" else "--tokenizer"
        raise DataError(
            f"'{name}' is neither a local path nor a {kind} that the hub shows to this user: give "
            f"{flag} an existing file, folder or hub name, or log in to the hub if it is private"
        ) from None
    except Exception:  # whatever else a network does
        constants.HF_HUB_OFFLINE = True
        return "offline"


@dataclass(frozen=True)
class DataSource:
    """A dataset that was found: files by split, or a folder or hub name for `datasets`.

    `key` changes whenever the contents do, or the part of them that is meant.
    """

    name: DatasetName
    key: Key
    files: Mapping[str, tuple[Path, ...]] | None = None
    folder: Path | None = None
    notices: tuple[str, ...] = ()

    def splits(self) -> tuple[Mapping[str, Iterator[Block]], tuple[str, ...]]:
        """Open the splits, named as in `SPLITS`; rows are read as they are asked for.

        Returns:
            Them, and what is to be said of the source.

        Raises:
            DataError: `datasets` cannot load it, or it has no split of the name that is asked for.
        """
        if self.files is not None:
            return {split: read_files(files) for split, files in self.files.items()}, self.notices
        tables = _load_tables(self.name, self.folder)
        chosen = _chosen(self.name, list(tables))
        opened = {
            role: read_table(tables[split], f"{self.name.short}, split {split}")
            for role, split in chosen.items()
        }
        return opened, (*self.notices, *_left_out("splits", set(tables) - set(chosen.values())))


def find_source(name: DatasetName, cache: Path) -> DataSource:
    """Find a dataset; nothing is read yet, but what fsspec opens is copied to the cache.

    Raises:
        DataError: a local path does not exist, or holds nothing that can be read.
    """
    path = fetched(name, cache) if name.is_url else name.path
    if not path.exists():
        if looks_local(name.where):
            raise DataError(_missing(name.where, path))
        asked = (name.configuration or "", name.split or "")
        version = ("hub", name.where, revision(name.where, "dataset", name.revision), *asked)
        return DataSource(name, (version,))
    if path.is_file():
        if file_format(path) not in SUFFIXES:
            raise DataError(
                f"'{name.where}' is not a kind of file that can be read: give "
                f"--dataset-name-or-path a {', '.join(SUFFIXES)} file (also .gz), a folder or a "
                "hub name"
            )
        return DataSource(name, stamp([path]), {"train": (path,)})
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        if name.configuration is not None:
            raise DataError(
                f"'{path}' has splits, but no configuration '{name.configuration}': name it alone, "
                f"or a split, as by {name.where}::train"
            )
        files = stamp(sorted(p for p in path.rglob("*") if p.is_file()))
        return DataSource(name, (*files, (name.split or "",)), folder=path)
    return _folder_source(name, path)


def _folder_source(name: DatasetName, path: Path) -> DataSource:
    """Find the files of a folder, as its README.md declares them or as they are called."""
    configured = configured_files(path, name.configuration, SUFFIXES)
    if configured is None:
        by_name, unread = _files_by_split(path, needs_train=name.split is None)
        said = _several(path, by_name.get("train", ())) + _left_out("files", unread)
    else:
        by_name, told = configured
        said = [told]
    chosen = _chosen(name, list(by_name))
    files = {role: by_name[split] for role, split in chosen.items()}
    if configured is not None or name.split is not None:
        said += _left_out("splits", by_name.keys() - set(chosen.values()))
    key = tuple((split, *one) for split in sorted(files) for one in stamp(files[split]))
    return DataSource(name, (*key, tuple(said)), files, notices=tuple(said))


def _several(root: Path, files: Sequence[Path]) -> list[str]:
    """Say that files are read as one which are not numbered parts of one."""
    folders = sorted({str(path.parent.relative_to(root)) for path in files})
    if len(folders) > 1:
        return [f"files of several folders are read as one: {listed(folders)}"]
    parts = {re.sub(r"\d+", "", path.name): path.name for path in reversed(files)}
    names = listed(sorted(parts.values()))
    return [f"files of several names are read as one: {names}"] if len(parts) > 1 else []


def _chosen(name: DatasetName, splits: Sequence[str]) -> dict[str, str]:
    """Return the splits by their roles; of one that is named, it alone, to train on.

    Raises:
        DataError: there is none of that name, or several could be the one to train on.
    """
    if name.split is None:
        return roles(name.where, splits)
    if name.split not in splits:
        near = did_you_mean(name.split, splits)
        raise DataError(
            f"'{name.where}' has no split '{name.split}', only {listed(splits)}{near}: name one of "
            "these"
        )
    return {"train": name.split}


def _left_out(noun: str, names: Collection[str]) -> list[str]:
    """Say which of a dataset's splits or files are not used, if there are any."""
    return [f"{noun} that are not used: {listed(sorted(names))}"] if names else []


def _missing(name: str, path: Path) -> str:
    near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    return (
        f"the dataset '{name}' does not exist{did_you_mean(path.name, near)}: give "
        "--dataset-name-or-path an existing file or folder, or a hub name"
    )


def _files_by_split(
    folder: Path, *, needs_train: bool
) -> tuple[dict[str, tuple[Path, ...]], list[str]]:
    """Sort a folder's data files into splits by the words of their names.

    Files without such a word are training data, unless others say that they are.

    Returns:
        The files by split, and the names of those that are not used.
    """
    shown = [
        path
        for path in sorted(folder.rglob("*"))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    files = [path for path in shown if path.is_file() and not ABOUT.fullmatch(path.name)]
    found = [path for path in files if file_format(path) in SUFFIXES]
    require_links(path for path in shown if file_format(path) in SUFFIXES)
    if missing := missing_part(found):
        raise DataError(
            f"the folder '{folder}' lacks {missing}, a part beside those that it holds: fetch it, "
            "or name the files that are to be read, with commas between them"
        )
    kinds = sorted({file_format(path) for path in found})
    if len(kinds) != 1:
        noun = f"files of several kinds ({', '.join(kinds)})" if kinds else "no data file"
        raise DataError(
            f"the folder '{folder}' holds {noun}: give --dataset-name-or-path a folder with "
            f"files of one kind of {', '.join(SUFFIXES)}, or one file"
        )
    splits: dict[str, list[Path]] = {}
    for path in found:
        splits.setdefault(_split_of(str(path.relative_to(folder))) or "", []).append(path)
    unnamed = splits.pop("", [])
    unread = [p for p in files if p not in found and not PROSE.match(p.name)]
    unread += unnamed if "train" in splits else []
    if unnamed or needs_train:
        splits.setdefault("train", unnamed)
    if needs_train and not splits["train"]:
        others = ", ".join(sorted(set(splits) - {"train"}))
        raise DataError(
            f"the folder '{folder}' holds no training data, only {others}: add a file whose name "
            "holds the word train, or name one file"
        )
    names = [str(p.relative_to(folder)) for p in unread]
    return {split: tuple(paths) for split, paths in splits.items()}, names


def _split_of(name: str) -> str | None:
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for split, known in SPLITS.items() if set(known) & set(words)), None)


def roles(name: str, splits: Sequence[str]) -> dict[str, str]:
    """Return which of a dataset's splits is for training, validation and test.

    A split of exactly that name comes first; one of any other name trains where no other does.

    Raises:
        DataError: several could be the one to train on.
    """
    found: dict[str, list[str]] = {}
    for split in splits:
        found.setdefault(_split_of(split) or "", []).append(split)
    unknown = found.pop("", [])
    found.setdefault("train", unknown)
    chosen = {
        role: next((split for split in among if split in SPLITS[role]), among[0])
        for role, among in found.items()
        if among
    }
    train = found["train"]
    if len(train) > 1 and chosen["train"] not in SPLITS["train"]:
        raise DataError(
            f"'{name}' has several splits to train on ({', '.join(train)}): name one, as by "
            f"--dataset-name-or-path {name}::{train[0]}"
        )
    return chosen


def _load_tables(name: DatasetName, folder: Path | None) -> Mapping[str, Any]:
    import datasets  # type: ignore[import-untyped]

    try:
        if folder is not None:
            loaded: Any = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(name.where, name.configuration, revision=name.revision)
    except Exception as error:  # network, hub, Arrow and script errors alike
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "onfig name is missing" in reason:
            raise DataError(
                f"the dataset '{name.where}' has several configurations "
                f"({_listed_in(str(error))}): name one, as by --dataset-name-or-path "
                f"{name.where}:CONFIGURATION"
            ) from None
        raise DataError(
            f"the dataset '{name.where}' is neither a local path nor can it be loaded by "
            f"`datasets` ({reason}): give --dataset-name-or-path an existing file, folder or hub "
            "name"
        ) from None
    return loaded if isinstance(loaded, dict) else {"train": loaded}


def _listed_in(text: str) -> str:
    """Return what stands between the first pair of brackets."""
    return text.partition("[")[2].partition("]")[0] or "which the hub lists"
