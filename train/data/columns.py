"""Which columns of a row are used, and as what: by their names, or as `--columns` says.

A column has a role by its name (`NAMES`); what has none is named as unused. Where the columns that
are left would train something else than the row says, the row is refused:

    messages                       a conversation; `system` and `tools` go with it
    prompt and completion          with `input`, `system`, `history` and `tools` where they are
    text                           the whole text, where no answer stands beside it
    prompt                         the whole text, where nothing but numbers stands beside it
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from train.data.column_names import KNOWN, NAMES, PREFERENCE, plain_name, suggestion
from train.data.row_format import KINDS, OPTIONAL, RowFormat, refuse_half
from train.data.turns import listed_turns, role_of
from train.errors import DataError, did_you_mean
from train.text import listed


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
                f"--columns {suggestion(row, **{role: chosen[0]})}"
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
        f"--columns {suggestion(row)}{next(filter(None, hints), '')}"
    )


def _is_transcript(row: Mapping[str, Any], name: str) -> bool:
    """Whether a column holds talk as one text, as to be summarized, and no list of turns."""
    value = row[name]
    spoken = plain_name(name) in ("dialogue", "dialog") and isinstance(value, str)
    return spoken and not value.lstrip().startswith("[")
