"""Whether all hosts see a folder: a file is put there on one, and looked for on the others."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from train.errors import ConfigError

PATIENCE = 10.0  # seconds: a network file system may keep an old listing for a while


@contextlib.contextmanager
def shared_token(folder: Path) -> Iterator[Path]:
    """Put a file into a folder that other hosts must then see; a folder made for it goes again.

    Raises:
        ConfigError: the folder cannot be written.
    """
    token = folder / f".anyrank-check-{secrets.token_hex(8)}"
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        token.touch()
    except OSError as error:
        raise ConfigError(
            f"the folder of the runs, {folder}, cannot be written ({error.strerror}): name another "
            "with --run-dir"
        ) from None
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def sees(token: Path, patience: float = PATIENCE) -> bool:
    """Whether a file that another host has written appears here within `patience` seconds."""
    deadline = time.monotonic() + patience
    while not token.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
