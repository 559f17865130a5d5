"""The named points of a save, so that tests can end a process at any one of them."""

from __future__ import annotations

POINTS = ("begun", "copied", "opened", "halfway", "written", "agreed", "indexed", "renamed",
          "completed", "pruned")  # fmt: skip


def failpoint(name: str) -> None:
    """Pass one of POINTS. It does nothing; the chaos tests end the process in its place."""
