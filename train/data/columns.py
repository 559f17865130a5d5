"""Which columns of a row are used, and as what: by their names, or as `--columns` says.

A column has a role by its name (`NAMES`); what has none is named as unused. Where the columns that
are left would train something else than the row says, the row is refused:

    messages                       a conversation; `system` and `tools` go with it
    prompt and completion          with `input`, `system`, `history` and `tools` where they are
    text                           the whole text, where no answer stands beside it
    prompt                         the whole text, where nothing but numbers stands beside it
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from typing import Any

from train.data.turns import ROLE_OF, listed_turns, role_of
from train.errors import DataError, did_you_mean
from train.text import printable

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
KINDS = ("messages", "completion", "text", "prompt")  # in the order in which they are looked for
OPTIONAL = {
    "messages": ("system", "tools"),
    "completion": ("input", "system", "history", "tools"),
}
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


def choose_format(
    row: Mapping[str, Any], columns: Mapping[str, str], loss_on: str | None, place: str
) -> RowFormat:
    """Return how a row is read.

    Args:
        row: decides by the names of its columns, and by the kinds of their values.
        columns: `--columns`, a column's name by its role; only these are used where it is given.
        loss_on: `--loss-on`.
        place: the row's file and line.

    Raises:
        DataError: the columns are none that are known, or more than one reading fits them.
    """
    try:
        found = _given(row, columns) if columns else _by_names(row)
        if loss_on == "completion" and found.kind in ("text", "prompt"):
            raise ValueError(
                "--loss-on completion needs a column that holds a completion, but only "
                f"'{found.roles[found.kind]}' was found: name one by --columns, or leave --loss-on "
                "out"
            )
    except ValueError as error:
        raise DataError(f"{place}: {error}") from None
    return found


def is_known(row: Mapping[str, Any]) -> bool:
    """Whether a row has a column that is known by its name."""
    words = [plain_name(name) for name in row]
    return any(word in KNOWN or PREFERENCE.fullmatch(word) for word in words)


def listed(names: Collection[object]) -> str:
    """Return names of columns with commas between them; of very many, the first."""
    shown = [printable(str(name), 40) for name in islice(names, 20)]
    more = [f"and {len(names) - 20} more"] if len(names) > 20 else []
    return ", ".join([name if name.strip() else f"'{name}'" for name in shown] + more) or "none"


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


def _given(row: Mapping[str, Any], columns: Mapping[str, str]) -> RowFormat:
    """Read a row by `--columns` alone.

    Raises:
        ValueError: a column is not there, they make no sample, or a prompt would be trained alone.
    """
    missing = [name for name in columns.values() if name not in row]
    if missing:
        raise ValueError(
            f"--columns names {listed(missing)}, which is not there: found {listed(row)}; "
            "name columns of the file"
        )
    aliases = {"instruction": "prompt", "output": "completion"}
    roles = {aliases.get(role, role): name for role, name in columns.items()}
    if not set(roles) & set(KINDS) or ("completion" in roles) > ("prompt" in roles):
        raise ValueError(
            f"--columns names only {listed(columns)}: name messages, or prompt and completion, or "
            "text"
        )
    unused = tuple(name for name in map(str, row) if name not in roles.values())
    found = RowFormat(roles, unused, "instruction" in columns or "input" in columns, True)
    apt = (found.kind, *OPTIONAL.get(found.kind, ()), *["prompt"] * (found.kind == "completion"))
    if more := [name for role, name in roles.items() if role not in apt]:
        kind = f"a {found.kind}" if found.kind != "messages" else found.kind
        raise ValueError(
            f"--columns names {listed(more)}, which does not go with {kind}: leave it out, or name "
            "prompt and completion, with which input, system, history and tools go"
        )
    refuse_half(row, found)
    return found


def _by_names(row: Mapping[str, Any]) -> RowFormat:
    """Read a row by the names of its columns.

    Raises:
        ValueError: they are not known, or would train something else than the row says.
    """
    plain = {str(name): plain_name(name) for name in row}
    pairs = [name for name, word in plain.items() if PREFERENCE.fullmatch(word)]
    pairs = [name for name in pairs if not isinstance(row[name], int | float)] or pairs
    if pairs:
        raise ValueError(_preference(row, plain, pairs))
    found = {
        role: [name for name, word in plain.items() if word in words]
        for role, words in NAMES.items()
    }
    found["messages"] = [name for name in found["messages"] if not _is_transcript(row, name)]
    if not found["prompt"]:  # `input` and `output`
        found["prompt"], found["input"] = found["input"][:1], found["input"][1:]
    kind = next((kind for kind in KINDS if found[kind] and _suffices(kind, found, plain)), None)
    if kind is None:
        raise ValueError(_unknown(row))
    roles = {}
    for role in (*(("prompt",) if kind == "completion" else ()), kind, *OPTIONAL.get(kind, ())):
        chosen = _preferred(found[role], plain)
        if len(chosen) > 1:
            raise ValueError(
                f"{listed(chosen)} could each be the {role}: say what is what by --columns, as in "
                f"--columns {_suggestion(row, **{role: chosen[0]})}"
            )
        if chosen:
            roles[role] = chosen[0]
    unused = tuple(name for name in plain if name not in roles.values())
    instruction = plain.get(roles.get("prompt", "")) == "instruction"
    result = RowFormat(roles, unused, instruction or "input" in roles)
    refuse_half(row, result)
    return result


def _suffices(kind: str, found: Mapping[str, list[str]], plain: Mapping[str, str]) -> bool:
    """Whether a kind has what it needs: a completion its prompt; a prompt alone that very name."""
    if kind == "prompt":
        return any(plain[name] == "prompt" for name in found["prompt"])
    return kind != "completion" or bool(found["prompt"])


def _preferred(names: list[str], plain: Mapping[str, str]) -> list[str]:
    """Return which of several columns of one role is meant: both halves of a known pair."""
    words = set(plain.values())
    for pair in (("instruction", "output"), ("prompt", "completion")):
        if words.issuperset(pair) and any(plain[name] in pair for name in names):
            return [name for name in names if plain[name] in pair]
    return names


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
                way = f"give --columns {_suggestion(row, prompt=used, completion=name)}, or"
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


def _preference(row: Mapping[str, Any], plain: Mapping[str, str], pairs: list[str]) -> str:
    apart = [name for name, word in plain.items() if word in NAMES["completion"]]
    kept = [name for name in pairs if "rejected" not in plain[name]] + apart
    chosen = kept[0] if kept else "COLUMN"
    answer = row.get(chosen, row.get(pairs[0]))
    said = (
        f"{listed(pairs)} are answers to choose between, for --objective dpo, where they are named "
        "chosen and rejected; supervised training takes one answer"
    )
    if not isinstance(answer, str | list):
        return f"{said}, which is a text or a list of turns"
    turns = listed_turns(answer)
    one = f"{'text' if turns is None else 'messages'}={chosen}"
    whole = turns and role_of(turns[0]) in ("system", "user")
    prompt = next((name for name, word in plain.items() if _asks(word, row[name])), None)
    if prompt is not None and not whole:
        one = f"prompt={prompt},completion={chosen}"
    return f"{said}: give --columns {one} to train on it"


def _asks(word: str, value: Any) -> bool:
    """Whether a column may be the prompt of answers."""
    turns = listed_turns(value) or []
    if word in NAMES["messages"]:
        return bool(turns) and role_of(turns[-1]) != "assistant"
    return word in (*NAMES["prompt"], "input") and isinstance(value, str | list)


def _unknown(row: Mapping[str, Any]) -> str:
    hints = [
        did_you_mean(plain_name(name), KNOWN, 0.9) for name in row if plain_name(name) not in KNOWN
    ]
    if row and all(str(name).rstrip().endswith((".", "?", "!")) for name in row):
        return f"the columns are named {listed(row)}: put a line with their names above the rows"
    return (
        f"no known set of columns: found {listed(row)}, but needed are messages, or prompt and "
        "completion, or instruction and output, or text: say what is what by --columns, as in "
        f"--columns {_suggestion(row)}{next(filter(None, hints), '')}"
    )


def _suggestion(row: Mapping[str, Any], **known: str) -> str:
    """Return a value of --columns for a row, of which the columns of some roles are known."""
    if known.keys() & {"messages", "text"}:
        return ",".join(f"{role}={name}" for role, name in known.items())
    if more := {role: known.pop(role) for role in known.keys() - {"prompt", "completion"}}:
        return ",".join([_suggestion(row, **known), *(f"{r}={name}" for r, name in more.items())])
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


def _is_transcript(row: Mapping[str, Any], name: str) -> bool:
    """Whether a column holds talk as one text, as to be summarized, and no list of turns."""
    value = row[name]
    spoken = plain_name(name) in ("dialogue", "dialog") and isinstance(value, str)
    return spoken and not value.lstrip().startswith("[")


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
