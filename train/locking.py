"""One process of a host at a time; the lock ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from train.errors import DataError


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, made with its folders (mode 0700) if need be.

    A DataError is left in the file for those who were waiting meanwhile: they fail with the same
    words at once, instead of each finding it anew.
    """
    for folder in (*reversed(path.parent.parents), path.parent):
        folder.mkdir(mode=0o700, exist_ok=True)
    asked = time.time_ns()
    with path.open("a+", encoding="utf-8", errors="backslashreplace") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        told = file.read()
        if told and path.stat().st_mtime_ns > asked:
            raise DataError(told)
        file.truncate(0)
        try:
            yield
        except DataError as error:
            file.write(str(error))
            file.flush()
            raise
