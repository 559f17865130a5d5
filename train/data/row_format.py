"""How rows are read, as a value; and which rows may not be read in a given way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from train.data.column_names import (
    ANSWERS,
    IDENTITY,
    NAMES,
    SPOKEN,
    VERDICT,
    plain_name,
    spelt,
    suggestion,
)
from train.data.turns import ROLE_OF
from train.text import listed

KINDS = ("messages", "completion", "text", "prompt")  # in the order in which they are looked for
OPTIONAL = {
    "messages": ("system", "tools"),
    "completion": ("input", "system", "history", "tools"),
}


@dataclass(frozen=True)
class RowFormat:
    """How rows are read: the column of each role that is used, and the columns that are not.

    `alpaca`: written with that template where the tokenizer has none. `given`: by `--columns`.
    """

    roles: Mapping[str, str]
    unused: tuple[str, ...] = ()
    alpaca: bool = False
    given: bool = False

    @cached_property
    def kind(self) -> str:
        """What is trained on: `messages`, `completion`, `text` or `prompt`, a role of `roles`."""
        return next(role for role in KINDS if role in self.roles)

    @cached_property
    def required(self) -> Mapping[str, str]:
        """The roles that every row must have."""
        optional = OPTIONAL.get(self.kind, ())
        return {role: column for role, column in self.roles.items() if role not in optional}


def require_columns(form: RowFormat, row: Mapping[str, Any]) -> None:
    """Check that a row has the columns without which it cannot be read.

    Raises:
        ValueError: one is missing.
    """
    for column in form.required.values():
        if column not in row:
            raise ValueError(f"column '{column}' is missing: found {listed(sorted(map(str, row)))}")


def require_unjudged(form: RowFormat, row: Mapping[str, Any]) -> None:
    """Check that no verdict stands beside a row's answer.

    Raises:
        ValueError: one does; supervised training does not heed it.
    """
    judges = () if form.given or form.kind in ("text", "prompt") else form.unused
    for name in (mark for mark in judges if VERDICT.fullmatch(plain_name(mark))):
        if not isinstance(spelt(row.get(name)), str | None):
            raise ValueError(
                f"'{name}' judges the answer, and supervised training would learn the bad ones "
                f"as well: leave those rows out, then give --columns {named(form)}"
            )


def richer(first: RowFormat, other: RowFormat) -> str:
    """Return why a row says more than those before it, which were read without it; or nothing."""
    if first.kind == other.kind and first.required == other.required:
        return ""
    more = sorted(set(other.required.values()) - set(first.required.values()))
    return f"has {', '.join(more)} as well, which the rows before it have not"


def refuse_half(row: Mapping[str, Any], found: RowFormat) -> None:
    """Refuse a row of which the columns that are not used say how the others are meant.

    Given columns are used as they are, but for a prompt: that is one of something.

    Raises:
        ValueError: there is a verdict on the answer, or an answer to what would be trained alone.
    """
    require_unjudged(found, row)
    if found.kind in ("messages", "completion") or (found.given and found.kind == "text"):
        return
    used = found.roles[found.kind]
    texts = found.unused if found.kind == "text" else ()
    speaker = next((name for name in texts if SPOKEN.fullmatch(plain_name(name))), None)
    if speaker and str(row[speaker]).strip().lower() in ROLE_OF:
        raise ValueError(
            f"'{used}' would be trained alone, though it is what the '{speaker}' beside it says in "
            "a conversation: write the turns of each as one row of messages, or give --columns "
            f"text={used}"
        )
    _refuse_answered(row, found)


def _refuse_answered(row: Mapping[str, Any], found: RowFormat) -> None:
    """Refuse a bare prompt or text beside which its answer may stand.

    Raises:
        ValueError: it names that column.
    """
    used = found.roles[found.kind]
    for name in found.unused:
        word, value = plain_name(name), row.get(name)
        if _competes(word, value, found.kind):
            way = "give"
            if isinstance(value, int | float):
                way = f"write '{name}' as a text, or give"
            elif isinstance(value, str) or (isinstance(value, list) and "{" in str(value[:1])):
                way = f"give --columns {suggestion(row, prompt=used, completion=name)}, or"
            raise ValueError(
                f"'{used}' alone would be trained, though '{name}' stands beside it: {way} "
                f"--columns text={used} to train it alone"
            )


def named(form: RowFormat) -> str:
    """Return the value of --columns that reads rows in the same way."""
    return ",".join(f"{role}={column}" for role, column in form.roles.items())


def _competes(word: str, value: Any, kind: str) -> bool:
    """Whether a column beside a bare text or prompt may be the answer to it."""
    if isinstance(value, int | float):  # a class or a score, or what a question has for an answer
        return word in ("answer", "response", "completion", "solution", "reply")
    if word in NAMES["completion"] or ANSWERS.fullmatch(word):
        return True
    content = isinstance(value, str | list | dict) and bool(value)
    return kind == "prompt" and content and not IDENTITY.fullmatch(word)
