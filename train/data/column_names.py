"""What the names of a row's columns say, and what stands in them: facts that a reading rests on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

# The names that a column of a role may have, in lower case; a role's own name comes first.
NAMES = {
    "messages": ("messages", "conversations", "conversation", "dialogue", "dialog"),
    "prompt": ("prompt", "instruction", "question", "query", "user", "human", "problem"),
    "completion": (
        "completion", "output", "response", "answer", "target", "targets", "reply", "assistant",
        "gpt", "solution",
    ),
    "input": ("input", "context", "inputs"),
    "system": ("system", "system_prompt", "system_message"),
    "history": ("history",),
    "tools": ("tools", "functions", "available_tools"),
    "text": ("text",),
}  # fmt: skip
KNOWN = frozenset(word for words in NAMES.values() for word in words)
# Two answers to choose between, or a verdict on one.
PREFERENCE = re.compile(
    r"(.*_)?(chosen|rejected)(_.*)?|(non_?|dis)?preferred(_(output|response|answer|completion))?"
    r"|(response|answer|completion|output|conversation|messages?)_?[0-9abjk]"
)
VERDICT = re.compile(r"labels?|kto_tag|(is_)?desirable")
# An answer in a form that is not one text.
ANSWERS = re.compile(
    r"labels?|(completion|response|answer|choice|candidate|output|generation|summarie)s"
    r"|summary|highlights"
)
SPOKEN = re.compile(r"role|from|speaker|author")  # of a turn
# How files without types spell what is true or false, or a number.
SPELT = re.compile(
    r"(?i)\s*(?:(?P<no>false|no|undesirable|bad)|(?P<yes>true|yes|desirable|good)"
    r"|(?P<number>[-+]?\d+(\.\d+)?))\s*"
)
IDENTITY = re.compile(r"|id|.*_id|idx|index|uuid|hash|__index_level_\d+__|unnamed:_\d+")


def is_known(row: Mapping[str, Any]) -> bool:
    """Whether a row has a column that is known by its name."""
    words = [plain_name(name) for name in row]
    return any(word in KNOWN or PREFERENCE.fullmatch(word) for word in words)


def suggestion(row: Mapping[str, Any], **known: str) -> str:
    """Return a value of --columns for a row, of which the columns of some roles are known."""
    if known.keys() & {"messages", "text"}:
        return ",".join(f"{role}={name}" for role, name in known.items())
    if more := {role: known.pop(role) for role in known.keys() - {"prompt", "completion"}}:
        return ",".join([suggestion(row, **known), *(f"{r}={name}" for r, name in more.items())])
    texts = [str(name) for name, value in row.items() if isinstance(value, str)]
    beside = {word for role in ("input", "system", "history", "tools") for word in NAMES[role]}
    left = [name for name in texts if name not in known.values() and plain_name(name) not in beside]
    left = [name for name in left if not IDENTITY.fullmatch(plain_name(name)) and len(name) <= 40]
    if len(left) + len(known) < 2:
        lists = [
            str(k) for k, held in row.items() if isinstance(held, list) and "{" in str(held[:1])
        ]
        if not known and (lists or left):
            return f"messages={lists[0]}" if lists else f"text={left[0]}"
    for role, other in (("completion", "prompt"), ("prompt", "completion")):
        apt = [name for name in left if plain_name(name) in NAMES[role]]
        apt += left[1:] if role == "completion" and not known else []
        apt += [name for name in left if plain_name(name) not in NAMES[other]] + ["COLUMN"]
        known.setdefault(role, apt[0])
        left = [name for name in left if name != known[role]]
    return f"prompt={known['prompt']},completion={known['completion']}"


def spelt(value: Any) -> Any:
    """Return what a text spells that is true, false or a number; anything else as it is."""
    found = SPELT.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return value
    return float(found["number"]) if found["number"] else found["yes"] is not None


@lru_cache(maxsize=4096)
def plain_name(name: object) -> str:
    """Return a column's name in lower case, its words joined by underscores."""
    return re.sub(r"[\s-]+", "_", str(name).strip().lower())
