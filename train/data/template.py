"""From a row's columns to text, with the part of it that carries loss.

The first set of columns that a dataset has decides (`KINDS`, in this order):

    messages                           the tokenizer's chat template; loss on the assistant's turns
    prompt with completion, response   the two joined as they are; loss on the second
    prompt                             the whole text
    instruction, (input,) output       the alpaca template; loss on the output
    text                               the whole text
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train.data.tokenizer import Segment, Tokenizer
from train.errors import DataError, did_you_mean

Segments = tuple[Segment, ...]

# Stanford Alpaca's two prompts (github.com/tatsu-lab/stanford_alpaca, train.py), the answer on a
# line of its own as in that project's published `text` column.
ALPACA_HEAD = "Below is an instruction that describes a task"
ALPACA_TAIL = "Write a response that appropriately completes the request.\n\n"
ALPACA = (
    f"{ALPACA_HEAD}. {ALPACA_TAIL}### Instruction:\n{{instruction}}\n\n### Response:\n",
    f"{ALPACA_HEAD}, paired with an input that provides further context. {ALPACA_TAIL}"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
)
PLAIN_ROLES = {"system": "", "user": "User: ", "assistant": "Assistant:", "tool": "Tool: "}


@dataclass(frozen=True)
class RowFormat:
    """A way to read rows: the columns that it needs, and which of them carries loss."""

    columns: tuple[str, ...]
    completion: str | None = None


@dataclass(frozen=True)
class Rendered:
    """A sample's text as runs, each tokenized whole and closed by the end-of-sequence token.

    `complete`: a chat template has written the special tokens into the text; none are added.
    """

    runs: tuple[Segments, ...]
    complete: bool = False


KINDS = (
    RowFormat(("messages",), "messages"),
    RowFormat(("prompt", "completion"), "completion"),
    RowFormat(("prompt", "response"), "response"),
    RowFormat(("prompt",)),
    RowFormat(("instruction", "output"), "output"),
    RowFormat(("text",)),
)


def choose_format(columns: Collection[str], loss_on: str | None, place: str) -> RowFormat:
    """Return the first kind whose columns are there.

    Raises:
        DataError: there is none, or `--loss-on completion` is asked of one without a completion.
    """
    for kind in KINDS:
        if set(kind.columns) <= set(columns):
            if loss_on == "completion" and kind.completion is None:
                raise DataError(
                    f"{place}: --loss-on completion needs a column that holds a completion, but "
                    f"only '{kind.columns[0]}' was found: add completion or response to prompt, or "
                    "leave --loss-on out"
                )
            return kind
    known = {name for kind in KINDS for name in kind.columns}
    hints = [did_you_mean(name, known) for name in sorted(set(columns) - known)]
    raise DataError(
        f"{place}: no known set of columns: found {', '.join(sorted(columns)) or 'none'}, but "
        "needed are messages, or prompt (with completion or response, or alone), or instruction "
        f"and output (and input), or text{next(filter(None, hints), '')}"
    )


def refuse_richer(kind: RowFormat, columns: Collection[str]) -> None:
    """Refuse a row that has a completion where the rows before it had none.

    Raises:
        ValueError: it has.
    """
    for richer in KINDS:
        if set(kind.columns) < set(richer.columns) <= set(columns):
            more = ", ".join(sorted(set(richer.columns) - set(kind.columns)))
            raise ValueError(f"has {more} as well, which the rows before it have not")


def render(
    kind: RowFormat, row: Mapping[str, Any], loss_on: str | None, tokenizer: Tokenizer
) -> Rendered:
    """Turn a row into text.

    Raises:
        ValueError: a column is missing, or holds something other than its kind needs.
    """
    if kind.columns == ("messages",):
        rendered = _chat(_messages(row), tokenizer)
    elif kind.completion == "output":
        rendered = Rendered((_alpaca(row),))
    elif kind.completion is not None:
        prompt, completion = (_text(row, column) for column in kind.columns)
        rendered = Rendered((((prompt, False), (completion, True)),))
    else:
        rendered = Rendered((((_text(row, kind.columns[0]), True),),))
    return _all_loss(rendered) if loss_on == "all" else rendered


def describe(kind: RowFormat, loss_on: str | None, chat_template: bool) -> str:
    """Return one sentence on how the rows are read."""
    named = " and ".join(f"'{column}'" for column in kind.columns)
    if kind.columns == ("messages",):
        template = "its own chat template" if chat_template else "a plain built-in template"
        named += f" written with {template}" + (
            "" if chat_template else ", because the tokenizer has none"
        )
    elif kind.completion == "output":
        named += " (with 'input' where there is one) written with the alpaca template"
    whole = kind.completion is None or loss_on == "all"
    part = "the assistant's turns" if kind.completion == "messages" else f"'{kind.completion}'"
    return f"samples are {named}; the loss is on {'all of it' if whole else part}"


def _all_loss(rendered: Rendered) -> Rendered:
    runs = tuple(tuple((text, True) for text, _ in run) for run in rendered.runs)
    return Rendered(runs, rendered.complete)


def _text(row: Mapping[str, Any], column: str, optional: bool = False) -> str:
    value = row.get(column)
    if value is None and optional:
        return ""
    if column not in row:
        raise ValueError(
            f"column '{column}' is missing: found {', '.join(sorted(map(str, row))) or 'none'}"
        )
    return _checked(value, f"column '{column}'")


def _checked(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} must be text, but is {_noun(value)} instead")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} holds half of a surrogate pair, which is not a text") from None
    return value


def _noun(value: Any) -> str:
    if value is None:
        return "null"
    names = {str: "a text", bool: "a boolean", list: "a list", dict: "an object"}
    numbers = {int: "a number", float: "a number"}
    return (names | numbers).get(type(value), f"a {type(value).__name__}")


def _alpaca(row: Mapping[str, Any]) -> Segments:
    instruction, output = _text(row, "instruction"), _text(row, "output")
    given = _text(row, "input", optional=True)
    prompt = ALPACA[bool(given)].format(instruction=instruction, input=given)
    return ((prompt, False), (output, True))


def _messages(row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the conversation, checked."""
    found = row.get("messages")
    if not isinstance(found, list):
        raise ValueError(f"column 'messages' must be a list, but is {_noun(found)} instead")
    if not found:
        raise ValueError("column 'messages' is an empty list")
    for number, message in enumerate(found, 1):
        if not isinstance(message, dict):
            raise ValueError(f"message {number} must be an object, but is {_noun(message)} instead")
        _checked(message.get("role"), f"the role of message {number}")
        if message.get("content") is not None or not message.get("tool_calls"):
            _checked(message.get("content"), f"the content of message {number}")
    return found


def _chat(messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> Rendered:
    segments = tokenizer.chat(messages)
    return Rendered(_plain_chat(messages)) if segments is None else Rendered((segments,), True)


def _plain_chat(messages: Sequence[Mapping[str, Any]]) -> tuple[Segments, ...]:
    """Write `User: …`, `Assistant: …`, a run for each of the assistant's turns."""
    runs: list[Segments] = []
    open_run: list[Segment] = []
    for number, message in enumerate(messages, 1):
        role = message["role"]
        if role not in PLAIN_ROLES:
            roles = ", ".join(PLAIN_ROLES)
            raise ValueError(
                f"the role of message {number} must be one of {roles}, but is '{role}' instead"
                f"{did_you_mean(role, PLAIN_ROLES)}"
            )
        content = message.get("content") or ""
        if role == "assistant":
            open_run += [(PLAIN_ROLES[role], False), (f" {content}", True)]
            runs.append(tuple(open_run))
            open_run = []
        else:
            open_run.append((f"{PLAIN_ROLES[role]}{content}\n\n", False))
    return (*runs, tuple(open_run)) if open_run else tuple(runs)
