"""Where files are: the package, what is shipped with it, and each user's own folders.

In a checkout `ds_configs/` and `hostfiles/` lie at the top; an installed wheel carries copies of
them inside the package (`[tool.setuptools.package-dir]` in pyproject.toml).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from train.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent
# What must be on Python's path for `import train`: the checkout, or an environment's site-packages.
ROOT = PACKAGE.parent
# What DeepSpeed's launcher starts as a file, once for each rank.
SCRIPT = PACKAGE / "main.py"
_SUFFIXES = r"\.(jsonl|json|ndjson|csv|tsv|parquet|arrow|txt|gz|zip|model|safetensors)"


def is_checkout() -> bool:
    """Whether this code runs from a checkout rather than from an installed wheel."""
    return (ROOT / "pyproject.toml").is_file() and (ROOT / "launch.sh").is_file()


def shipped(name: str | Path) -> Path:
    """Return where a file or folder that anyrank brings along lies, such as `hostfiles`."""
    return (ROOT if is_checkout() else PACKAGE / "shipped") / name


def looks_local(name: str) -> bool:
    """Whether a name can only mean a path, so that the hub is never asked for it."""
    return (
        re.match(r"[~./]", name) is not None
        or re.search(f"{_SUFFIXES}$", name) is not None
        or name.count("/") > 1
        or name.endswith("/")
        or Path(name).exists()
    )


def cache_path(env: Mapping[str, str]) -> Path:
    """Return this user's cache folder of anyrank, whether it exists or not."""
    return Path(env.get("XDG_CACHE_HOME") or _home(env) / ".cache") / "anyrank"


def cache_folder(env: Mapping[str, str]) -> Path:
    """Return this user's cache folder of anyrank, made with mode 0700.

    Raises:
        ConfigError: it cannot be made.
    """
    folder = cache_path(env)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(folder, error) from None
    return folder


def unusable(cache: Path, error: OSError) -> ConfigError:
    """Return what is said of a cache folder that cannot be made, written or read."""
    return ConfigError(
        f"the cache folder {cache} cannot be used ({error.strerror or error}): free space there, "
        "or set XDG_CACHE_HOME to a folder that this user may write"
    )


def calibration_folder(cache: Path) -> Path:
    """Return where a user's cache keeps what `anyrank plan --calibrate` has measured."""
    return cache / "calibration"


def config_path(env: Mapping[str, str]) -> Path:
    """Return where this user's choices are kept, whether it exists or not."""
    return Path(env.get("XDG_CONFIG_HOME") or _home(env) / ".config") / "anyrank"


def _home(env: Mapping[str, str]) -> Path:
    return Path(env["HOME"]) if env.get("HOME") else Path.home()
