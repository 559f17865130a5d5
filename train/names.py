"""What `--dataset-name-or-path` names: one dataset or several, each whole or a part, with weights.

data.jsonl                        a file, a folder, or a hub name
owner/name:subset:split@revision  a part of a hub's dataset; also folder:subset:split
s3://bucket/data.jsonl            whatever fsspec opens
a.jsonl*2,b.jsonl                 several, of which an epoch takes the first twice
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from train.errors import ConfigError
from train.paths import looks_local

TRAINED = "--dataset-name-or-path"
_WEIGHT = re.compile(r"(.+)\*(\d+\.?\d*|\.\d+)")


@dataclass(frozen=True)
class DatasetName:
    """One dataset: where it is, which part of it is meant, and how often an epoch takes it.

    `where` is a path, a hub name or a URL. `configuration`, `split` and `revision` are None where
    they are not named.
    """

    where: str
    weight: float = 1.0
    configuration: str | None = None
    split: str | None = None
    revision: str | None = None

    @property
    def is_url(self) -> bool:
        """Whether fsspec is to fetch it."""
        return "://" in self.where or (self.where.endswith(".zip") and looks_local(self.where))

    @property
    def path(self) -> Path:
        """Where it is, as a path."""
        return Path(self.where).expanduser()

    @property
    def short(self) -> str:
        """What it is called in a line about several: a path's last part, or the hub name."""
        where = self.where.partition("?")[0] if "://" in self.where else self.where  # or a secret
        base = None if self.on_hub else Path(where.rstrip("/")).name
        parts = [base or where, self.configuration, self.split]
        return ":".join(part for part in parts if part)

    @property
    def on_hub(self) -> bool:
        """Whether it is the name of a hub's dataset."""
        return not self.is_url and not looks_local(self.where)


def read_names(text: str, flag: str = TRAINED) -> tuple[DatasetName, ...]:
    """Read the value of `flag`: names with commas between them; of a file so named, that one.

    Raises:
        ConfigError: a name is empty or stands twice, or its weight is 0.
    """
    parts = [text] if _exists(text) else [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ConfigError(f"{flag} has an empty name in '{text}': write name,name")
    found = tuple(_name(part, flag) for part in parts)
    named = [(one.where, one.configuration, one.split, one.revision) for one in found]
    for part, one in zip(parts, named, strict=True):
        if named.count(one) > 1:
            weighed = f", as {part}*2" * (flag == TRAINED)
            raise ConfigError(f"{flag} names '{part}' twice: name it once{weighed}")
    return found


def for_others(text: str) -> str:
    """Write the value as others may read it: paths and URLs by their last part alone."""
    return ",".join(
        one.short + f"@{one.revision}" * bool(one.revision) + f"*{one.weight:g}" * (one.weight != 1)
        for one in read_names(text)
    )


def local_paths(text: str) -> Iterator[str]:
    """Yield those of the names that are to be files or folders, and no URLs."""
    yield from (one.where for one in read_names(text) if not one.is_url)


def _exists(text: str) -> bool:
    return "://" not in text and Path(text).expanduser().exists()


def _name(text: str, flag: str) -> DatasetName:
    weighed = None if _exists(text) else _WEIGHT.fullmatch(text)
    text, weight = (weighed[1], float(weighed[2])) if weighed else (text, 1.0)
    if weight == 0:
        raise ConfigError(f"{flag} gives '{text}' the weight 0: leave it out")
    if weighed and flag != TRAINED:
        raise ConfigError(
            f"{flag} gives '{text}' the weight {weight:g}, but evaluates each sample once: leave "
            "the weight out"
        )
    if "://" in text or _exists(text):
        return DatasetName(text, weight)
    rest, _, revision = text.partition("@")
    where, *options = rest.split(":")
    if looks_local(where) and not Path(where).expanduser().is_dir():
        return DatasetName(text, weight)
    if len(options) > 2:
        raise ConfigError(
            f"{flag} takes owner/name:subset:split@revision, but is '{text}' instead: leave out "
            "what is more"
        )
    if revision and looks_local(where):
        raise ConfigError(
            f"{flag} names the revision '{revision}' of the folder '{where}', but only a hub's "
            "datasets have any: leave it out"
        )
    subset, split = (*options, "", "")[:2]
    return DatasetName(where, weight, subset or None, split or None, revision or None)
