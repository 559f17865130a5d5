"""The configurations that a dataset's folder declares in the front matter of its README.md.

configs:
- config_name: all
  data_files:
  - split: train
    path: data/all/train*
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from train.data.read import file_format
from train.errors import DataError, did_you_mean
from train.text import listed

Files = dict[str, tuple[Path, ...]]
# What an entry says that decides which files are read, is found in them, or concerns no row's text.
HEEDED = (
    "config_name", "data_files", "data_dir", "default", "description", "version", "features",
    "sep", "delimiter", "field", "encoding", "lines", "drop_labels", "drop_metadata",
)  # fmt: skip
_PART = re.compile(r"(.*?)(\d{3,})(-of-)(\d{3,})(.*)")  # train-00000-of-00002.parquet


def require_links(paths: Iterable[Path]) -> None:
    """Refuse links to files that are gone, as in a hub's cache that was cleared.

    Raises:
        DataError: it names one.
    """
    gone = next((path for path in paths if path.is_symlink() and not path.exists()), None)
    if gone is not None:
        raise DataError(f"{gone} is a link to a file that is gone: fetch it again, or remove it")


def missing_part(files: Iterable[Path]) -> str:
    """Return the name of a file that is missing among numbered parts; empty: none is."""
    held: dict[tuple[Path, str, str, str, str], dict[int, str]] = {}
    for path in files:
        if part := _PART.fullmatch(path.name):
            stem, number, of, count, tail = part.groups()
            held.setdefault((path.parent, stem, of, count, tail), {})[int(number)] = number
    for (_, stem, of, count, tail), numbers in held.items():
        first, width = min(1, *numbers), len(next(iter(numbers.values())))
        first = 0 if int(count) not in numbers else first
        for number in range(first, first + int(count)):
            if number not in numbers:
                return f"{stem}{number:0{width}}{of}{count}{tail}"
    return ""


def configured_files(
    folder: Path, chosen: str | None, suffixes: Collection[str]
) -> tuple[Files, str] | None:
    """Return a configuration's files by the names of its splits, and a sentence that names it.

    Args:
        folder: a local folder.
        chosen: the configuration that the user names; None: the default, or the only one.
        suffixes: of the files that can be read.

    Returns:
        None where the folder declares no files of configurations.

    Raises:
        DataError: none of several is chosen, the chosen one is not there, or a file is missing.
    """
    declared = {
        str(entry.get("config_name", "default")): entry
        for entry in _front_matter(folder / "README.md").get("configs") or ()
        if isinstance(entry, dict) and (entry.get("data_files") or entry.get("data_dir"))
    }
    named = ", ".join(declared)
    if chosen is not None and chosen not in declared:
        near = did_you_mean(chosen, declared)
        raise DataError(
            f"'{folder}' has no configuration '{chosen}', only {named or 'none'}{near}: name "
            "another, or the folder alone"
        )
    if not declared:
        return None
    defaults = [n for n, entry in declared.items() if entry.get("default") or n == "default"]
    name = chosen or next(iter(defaults or (declared if len(declared) == 1 else ())), None)
    if name is None:
        raise DataError(
            f"'{folder}' holds several configurations ({named}): name one, as by "
            f"--dataset-name-or-path {folder}:{next(iter(declared))}"
        )
    if more := [key for key in declared[name] if key not in HEEDED]:
        raise DataError(
            f"README.md of '{folder}' says by {listed(more)} how the files of its configuration "
            f"'{name}' are read, which is not heeded: name the files themselves, with --columns"
        )
    said = f"the configuration '{name}' of {named} is read, as the dataset's README.md says"
    return _files(folder, name, declared[name], suffixes), said


def _front_matter(readme: Path) -> Mapping[str, Any]:
    import yaml

    try:
        text = readme.read_text(encoding="utf-8", errors="replace")
        head = text.split("\n---", 1)[0].removeprefix("---") if text.startswith("---") else ""
        found = yaml.safe_load(head)
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _files(folder: Path, name: str, entry: Mapping[str, Any], suffixes: Collection[str]) -> Files:
    """Find the files of a configuration; its patterns are a text, a list, or either by split."""
    root, found = folder / str(entry.get("data_dir") or "."), entry.get("data_files") or "**"
    if isinstance(found, dict):
        found = [{"split": split, "path": path} for split, path in found.items()]
    patterns: dict[str, list[str]] = {}
    for part in found if isinstance(found, list) else [found]:
        held = part if isinstance(part, dict) else {"split": "", "path": part}
        split, path = held.get("split"), held.get("path")
        patterns.setdefault(str(split or "train"), []).extend(
            map(str, path if isinstance(path, list) else [path])
        )
    files: Files = {}
    for split, words in patterns.items():
        paths = [path for word in words for path in _matching(root, word)]
        require_links(paths)
        paths = [path for path in paths if file_format(path) in suffixes]
        if not paths:
            raise DataError(
                f"'{folder}' has no file {', '.join(words)} for its configuration '{name}': fetch "
                "it, or correct README.md"
            )
        files[split] = tuple(dict.fromkeys(paths))
    return files


def _matching(root: Path, pattern: str) -> list[Path]:
    if (root / pattern).is_dir():
        pattern = f"{pattern}/**"
    try:
        found = list(root.glob(f"{pattern}/*" if pattern.endswith("**") else pattern))
    except (NotImplementedError, ValueError):  # an absolute path, or none at all
        return []
    shown = [path for path in found if not path.name.startswith(".")]
    files = sorted(path for path in shown if path.is_file() or path.is_symlink())
    if (missing := missing_part(files)) and fnmatch(missing, Path(pattern).name):
        raise DataError(f"'{root}' lacks {missing}, which README.md names by {pattern}: fetch it")
    return files
