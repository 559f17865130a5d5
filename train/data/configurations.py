"""The configurations that a dataset's folder declares in the front matter of its README.md.

configs:
- config_name: all
  data_files:
  - split: train
    path: data/all/train*
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from train.data.read import file_format
from train.errors import DataError, did_you_mean

Files = dict[str, tuple[Path, ...]]


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
        patterns.setdefault(str(split or ""), []).extend(
            map(str, path if isinstance(path, list) else [path])
        )
    files: Files = {}
    for split, words in patterns.items():
        paths = [path for word in words for path in _matching(root, word)]
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
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))
