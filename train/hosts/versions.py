"""The versions of what this Python has installed, against those that anyrank needs."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from importlib import metadata

from train.paths import ROOT, is_checkout

_BOUND = re.compile(r"(>=|<)\s*(\d[\d.]*)")


def outside(names: Sequence[str], asked: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return which packages are too old, and which newer than was tested, each with both versions.

    Args:
        names: the packages to look at; one that is not installed is passed over.
        asked: requirements, as `torch>=2.11,<2.14`.
    """
    old: list[str] = []
    new: list[str] = []
    for need in asked:
        name = re.split(r"[^A-Za-z0-9._-]", need)[0]
        if name not in names:
            continue
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        bounds = need.partition(";")[0].removeprefix(name)
        for sign, bound in _BOUND.findall(bounds):
            if (_numbers(version) < _numbers(bound)) == (sign == ">="):
                kind = old if sign == ">=" else new
                kind.append(f"{name} {version} instead of {bounds}")
    return old, new


def requirements() -> tuple[str, ...]:
    """Return what anyrank depends on: of the checkout, or of the installed wheel."""
    if not is_checkout():
        return tuple(metadata.requires("anyrank") or ())
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tuple(tomllib.load(file)["project"]["dependencies"])


def _numbers(version: str) -> tuple[int, ...]:
    """Return a version's leading numbers: (2, 11, 0) of `2.11.0+cu130` or `2.11.0rc1`."""
    found = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(word) for word in found[0].split(".")] if found else []
    while numbers and not numbers[-1]:  # 1.0 is 1
        numbers.pop()
    return tuple(numbers)
