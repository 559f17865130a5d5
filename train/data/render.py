"""From a row to text, with the part of it that carries loss.

    messages                the chat template; loss on the assistant's turns
    prompt and completion   the chat template; without one joined as they are, or, with an
                            instruction, input, system or history, by the alpaca template
    prompt, or text         the whole text

What chat_template.py writes is whole: what a template leaves out is refused or counted there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from train.data.alpaca import WRITTEN, alpaca_prompt
from train.data.chat_template import by_template
from train.data.row_format import RowFormat
from train.data.tokenizer import Segments, Tokenizer
from train.data.turns import (
    REASONING,
    Conversation,
    Message,
    as_list,
    checked,
    converse,
    listed_turns,
    noun,
    read_tools,
    read_turns,
)
from train.data.unheeded import refuse_answer_beside

READ = ("role", "content", "tool_calls", "tool_call_id", *REASONING)  # compared, or of no meaning
OWN, JOINED = "written with the chat template", "joined as they are"


class NoTemplateError(Exception):
    """A row is a conversation, and the tokenizer has no chat template."""


@dataclass(frozen=True)
class Rendered:
    """A sample's text as runs, each tokenized whole and closed by the end-of-sequence token.

    `how` it was made, in words; `empty` answers carry no loss; of `shortened` turns the template
    leaves a part out, and `unread` keys altogether; `glued`: no white space stands between prompt
    and completion; `quoted`: a turn holds the template's marks; `written`: the row brings a
    template's marks along, so none was used. `said`: its texts alone, whatever form the row has
    and whatever template writes it.
    """

    runs: tuple[Segments, ...]
    how: str = ""
    empty: int = 0
    shortened: int = 0
    unread: tuple[str, ...] = ()
    glued: bool = False
    quoted: bool = False
    written: bool = False
    said: str = ""

    @property
    def complete(self) -> bool:
        """Whether a chat template has written the special tokens into the text: add none."""
        return self.how == OWN

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(text for run in self.runs for text, _ in run)


def render(
    form: RowFormat, row: Mapping[str, Any], loss_on: str | None, tokenizer: Tokenizer
) -> Rendered:
    """Turn a row into text.

    Raises:
        ValueError: a column is missing, or holds something other than its kind needs.
        NoTemplateError: it is a conversation, and the tokenizer has no chat template.
    """
    if form.kind in ("text", "prompt"):
        column = form.roles[form.kind]
        text = checked(row[column], f"column '{column}'")
        empty = not text.strip()
        return Rendered((((text, not empty),),), empty=int(empty), said=text)
    if form.kind == "messages":
        rendered = _chat(_conversation(form, row, tokenizer.template), tokenizer, loss_on)
    elif _is_chat(form, row) or (tokenizer.template and not _written(form, row, tokenizer)):
        rendered = _chat(_exchange(form, row, tokenizer.template), tokenizer, loss_on)
    else:
        said = _said(_exchange(form, row, ""))
        rendered = replace(_joined(form, row), written=bool(tokenizer.template), said=said)
    if loss_on != "all":
        return rendered
    runs = tuple(tuple((text, True) for text, _ in run) for run in rendered.runs)
    return replace(rendered, runs=runs)


def describe(form: RowFormat, loss_on: str | None, how: str) -> str:
    """Return one sentence on how the rows are read; `how` they are rendered."""
    named = [f"'{column}'" for column in form.required.values()]
    also = [f"'{column}'" for role, column in form.roles.items() if role not in form.required]
    said = " and ".join(named) + (f" (with {', '.join(also)} where there is one)" if also else "")
    whole = form.kind in ("text", "prompt") or loss_on == "all"
    part = "the assistant's turns" if form.kind == "messages" else f"'{form.roles[form.kind]}'"
    return f"samples are {said}{how and ' ' + how}; the loss is on {'all of it' if whole else part}"


def describe_pairs(how: str) -> str:
    """Return the same of pairs of answers."""
    return (
        f"pairs are a prompt with 'chosen' and 'rejected'{how and ' ' + how}; the loss is on both"
    )


def _optional(form: RowFormat, row: Mapping[str, Any], role: str) -> Any:
    """Return the value of a role that a row need not have."""
    return row.get(form.roles[role]) if role in form.roles else None


def _text(form: RowFormat, row: Mapping[str, Any], role: str) -> str:
    column = form.roles.get(role, "")
    value = _optional(form, row, role)
    missing = value is None and role in ("input", "system")
    return "" if missing else checked(value, f"column '{column}'")


def _is_chat(form: RowFormat, row: Mapping[str, Any]) -> bool:
    values = (row[form.roles[role]] for role in ("prompt", "completion"))
    return any(listed_turns(value) is not None for value in values)


def _conversation(form: RowFormat, row: Mapping[str, Any], template: str) -> Conversation:
    column = form.roles["messages"]
    messages, marks = read_turns(row[column], f"column '{column}'", template)
    if messages[-1]["role"] != "assistant":
        refuse_answer_beside(form, row)
    system = _system(form, row, messages)
    tools = read_tools(_optional(form, row, "tools") or messages[0].pop("tools", None))
    return converse([*system, *messages], [*[None] * len(system), *marks], tools)


def _system(form: RowFormat, row: Mapping[str, Any], messages: Sequence[Message]) -> list[Message]:
    """Return the message that a column of the system's text makes, if it is not there already."""
    text = _text(form, row, "system")
    first = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
    if first not in (None, text) and text:
        raise ValueError(
            f"column '{form.roles['system']}' and the first message are two texts of the system's: "
            "keep one"
        )
    return [{"role": "system", "content": text}] if text and first is None else []


def _exchange(form: RowFormat, row: Mapping[str, Any], template: str) -> Conversation:
    """Return prompt and completion as a conversation, loss on the completion."""
    before, marks = _turns(form, row, "prompt", "user", template)
    given = _text(form, row, "input")
    if given:
        if before[-1]["role"] != "user":
            raise ValueError(
                f"column '{form.roles['input']}' goes with what the user says last, but column "
                f"'{form.roles['prompt']}' ends in the {before[-1]['role']}'s turn: keep one"
            )
        before[-1]["content"] += f"\n\n{given}"
    past = [
        {"role": role, "content": text}
        for pair in _history(form, row)
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    first = before[:1] if past and before[0]["role"] == "system" else []
    head = [*_system(form, row, before), *first, *past]
    before, marks = before[len(first) :], marks[len(first) :]
    after, more = _turns(form, row, "completion", "assistant", template)
    if after[0]["role"] != "assistant":
        column = form.roles["completion"]
        raise ValueError(
            f"column '{column}' begins with the {after[0]['role']}'s turn, and not with an answer: "
            f"give --columns messages={column} where it holds the whole conversation"
        )
    return converse(
        [*head, *before, *after],
        [*[None] * len(head), *marks, *more],
        read_tools(_optional(form, row, "tools")),
        len(head) + len(before),
    )


def _turns(
    form: RowFormat, row: Mapping[str, Any], role: str, speaker: str, template: str
) -> tuple[list[Message], list[bool | None]]:
    value, column = row[form.roles[role]], form.roles[role]
    if (turns := listed_turns(value)) is not None:
        return read_turns(turns, f"column '{column}'", template)
    return [{"role": speaker, "content": _text(form, row, role)}], [None]


def _history(form: RowFormat, row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    value = _optional(form, row, "history")
    if value is None or value == "":
        return
    column = f"column '{form.roles['history']}'"
    for pair in as_list(value, column):
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{column} must hold pairs of texts, but holds {noun(pair)} instead")
        yield checked(pair[0], column), checked(pair[1], column)


def _joined(form: RowFormat, row: Mapping[str, Any]) -> Rendered:
    """Write prompt and completion without a chat template."""
    prompt, completion = _text(form, row, "prompt"), _text(form, row, "completion")
    given, system = _text(form, row, "input"), _text(form, row, "system")
    past = list(_history(form, row))
    alpaca = bool(form.alpaca or given or system or past)
    if alpaca:
        prompt = alpaca_prompt(prompt, given, system, past)
    if read_tools(_optional(form, row, "tools")):
        raise NoTemplateError
    empty = not completion.strip()
    how = WRITTEN if alpaca else JOINED
    glued = bool(prompt) and not empty and not (prompt[-1].isspace() or completion[0].isspace())
    return Rendered((((prompt, False), (completion, not empty)),), how, int(empty), glued=glued)


def _written(form: RowFormat, row: Mapping[str, Any], tokenizer: Tokenizer) -> bool:
    """Whether prompt or completion hold the marks of a template already."""
    texts = [_text(form, row, role) for role in ("prompt", "completion")]
    return tokenizer.marks is not None and any(map(tokenizer.marks.search, texts))


def _chat(talk: Conversation, tokenizer: Tokenizer, loss_on: str | None) -> Rendered:
    if not tokenizer.template:
        raise NoTemplateError
    if talk.silenced and loss_on == "all":
        raise ValueError(
            f"message {talk.silenced[0] + 1} is marked to carry no loss, but --loss-on all asks "
            "for it everywhere: leave one of them out"
        )
    keys = dict.fromkeys(key for message in talk.messages for key in message if key not in READ)
    unread = tuple(f"{key} of turns" for key in keys if key not in tokenizer.template)
    said = [message["content"] or "" for message in talk.messages]
    quoted = tokenizer.marks is not None and any(map(tokenizer.marks.search, said))
    segments, shortened = by_template(talk, tokenizer)
    return Rendered(
        (segments,), OWN, talk.empty, shortened, unread=unread, quoted=quoted, said=_said(talk)
    )


def _said(talk: Conversation) -> str:
    """Return what is said in a conversation, and called."""
    said = [[message["content"], message.get("tool_calls")] for message in talk.messages]
    return json.dumps(said, default=repr)
