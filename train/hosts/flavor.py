"""Flavors: a flavor is a hostfile, and one of them is current for each user and checkout.

The choice is a file of the user's own configuration folder, so that it outlives the shell and two
users, or two checkouts, never disturb each other.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from train.errors import HostfileError, PlanError, UserError, did_you_mean
from train.hosts.hostfile import Hostfile, read
from train.paths import ROOT, config_path
from train.planning.cluster import cluster_of
from train.planning.hardware import find_gpu
from train.text import GIB


@dataclass(frozen=True)
class Flavor:
    """A hostfile under its short name; `fault` says why it cannot be used, if it cannot."""

    name: str
    path: Path
    hostfile: Hostfile | None
    fault: str = ""


def find(folder: Path) -> tuple[Flavor, ...]:
    """Return the flavors of a folder, small ones first; broken hostfiles are kept, with a fault."""
    paths = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    flavors = [_flavor(path) for path in paths]
    return tuple(
        sorted(flavors, key=lambda one: (one.hostfile.slots if one.hostfile else 1e9, one.name))
    )


def choose(word: str, flavors: tuple[Flavor, ...]) -> Flavor:
    """Return the flavor that a name, a path or a number of the menu (from 1) means.

    Raises:
        UserError: there is none, or its hostfile cannot be read.
    """
    named = {flavor.name: flavor for flavor in flavors}
    if word in named:
        flavor = named[word]
    elif re.fullmatch("[0-9]+", word) and 1 <= int(word) <= len(flavors):
        flavor = flavors[int(word) - 1]
    elif Path(word).is_file():
        flavor = _flavor(Path(word).resolve())
    else:
        hint = did_you_mean(word, named) or f"; there are {', '.join(named) or 'none'}"
        raise HostfileError(f"there is no flavor '{word}'{hint}")
    if flavor.fault:
        raise HostfileError(flavor.fault)
    return flavor


def describe(hostfile: Hostfile) -> tuple[str, str]:
    """Return `32 x A100-SXM-80GB` and `2560 GB`; without a `#:` line the memory is not known."""
    common = hostfile.hardware.get("gpu", "GPU")
    kinds: dict[str, int] = {}
    for host in hostfile.hosts:
        kinds[host.gpu or common] = kinds.get(host.gpu or common, 0) + host.slots
    names = " + ".join(f"{slots} x {name}" for name, slots in kinds.items())
    try:
        sizes = [slots * _printed(hostfile, name) for name, slots in kinds.items()]
    except UserError:
        return names, ""
    return names, f"{sum(sizes)} GB"


def _printed(hostfile: Hostfile, name: str) -> int:
    """Return the GB of one GPU, as they are printed on its box if they are in its name.

    Raises:
        UserError: there is no such GPU, or the hostfile's words about it are wrong.
    """
    hosts = [(host.name, host.slots) for host in hostfile.hosts]
    gpu = cluster_of(hosts, hostfile.hardware, find_gpu(name)).gpu
    printed = re.search(r"(\d+)GB", name)
    return int(printed[1]) if printed else math.ceil(gpu.memory / GIB)


def choice_file(env: Mapping[str, str], checkout: Path = ROOT) -> Path:
    """Return where the choice of this user for this checkout is kept."""
    digest = hashlib.sha256(str(checkout.resolve()).encode()).hexdigest()[:12]
    return config_path(env) / f"flavor-{digest}"


def current(memory: Path) -> Path | None:
    """Return the hostfile that was chosen last, or None."""
    try:
        return Path(memory.read_text().strip() or ".") if memory.is_file() else None
    except OSError:
        return None


def remember(memory: Path, flavor: Flavor | None) -> None:
    """Keep a choice; None forgets it.

    Raises:
        HostfileError: the user's configuration folder cannot be written.
    """
    try:
        if flavor is None:
            with suppress(FileNotFoundError):
                memory.unlink()
            return
        memory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = memory.with_suffix(f".{os.getpid()}")
        draft.write_text(f"{flavor.path.resolve()}\n")
        draft.replace(memory)
    except OSError as error:
        raise HostfileError(
            f"the choice cannot be kept in {memory}: {error.strerror}; set XDG_CONFIG_HOME to a "
            "folder that you may write, or name a hostfile with --hostfile each time"
        ) from None


def _flavor(path: Path) -> Flavor:
    try:
        found = read(path)
        for name in {found.hardware.get("gpu", ""), *(host.gpu for host in found.hosts)} - {""}:
            find_gpu(name)
        return Flavor(path.name, path, found)
    except (HostfileError, PlanError) as error:
        return Flavor(path.name, path, None, str(error))
