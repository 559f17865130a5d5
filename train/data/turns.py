"""Conversations in whatever form rows hold them, as the messages that chat templates know.

A message is `{"role": system|user|assistant|tool, "content": text, …}`; a call is `tool_calls` of
`{"type": "function", "function": {"name": …, "arguments": {…}}}`. What a row says of a turn's loss
(`"weight": 0`, `"train": false`, …) is kept beside the messages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from train.errors import did_you_mean
from train.text import printable

Message = dict[str, Any]
ROLE_KEYS = ("role", "from", "speaker", "author")
CONTENT_KEYS = ("content", "value", "text", "message")
ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "bot", "model", "chatgpt", "bard", "bing", "ai", "chatbot"),
    "tool": ("tool", "function", "observation", "function_response", "tool_response", "ipython"),
    "call": ("function_call", "tool_call"),
}
ROLE_OF = {name: role for role, names in ROLES.items() for name in names}
# What the keys of a turn without a role may be: `{"human": …, "assistant": …}`.
SPEAKERS = {"input": "user", "output": "assistant", **ROLE_OF}
# Marks of a turn that carries loss where they are true, and of one that carries none.
WITH_LOSS = (
    "weight", "train", "training", "trainable", "train_on_turn", "loss", "loss_mask", "loss_weight",
)  # fmt: skip
WITHOUT_LOSS = ("ignore", "ignored", "masked", "no_loss")
UNCLEAR = ("mask", "training_detail", "train_detail")
MARKS = frozenset((*WITH_LOSS, *WITHOUT_LOSS, *UNCLEAR))
REASONING = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Conversation:
    """Messages, the descriptions of tools, and the turns that carry loss (numbers from 0).

    `silenced`: those that are marked to carry none; `empty`: how many of the assistant's turns say
    nothing, and so carry none.
    """

    messages: tuple[Message, ...]
    carrying: tuple[int, ...]
    tools: tuple[Message, ...] = ()
    silenced: tuple[int, ...] = ()
    empty: int = 0


def read_turns(value: Any, what: str, template: str) -> tuple[list[Message], list[bool | None]]:
    """Return the messages of a list of turns, and whether each is marked to carry loss.

    Args:
        value: a list, or a JSON text of one.
        what: names it in errors.
        template: the chat template. A turn that is a call stays the assistant's text where it
            writes no calls, and a role of its own is allowed where it names it.

    Raises:
        ValueError: it is not a list of turns, or a turn cannot be read as a message of text.
    """
    turns = as_list(_by_turns(value) if isinstance(value, dict) else value, what)
    if not turns:
        raise ValueError(f"{what} is an empty list")
    messages: list[Message] = []
    marks: list[bool | None] = []
    for turn in turns:
        where = f"message {len(messages) + 1}"
        if not isinstance(turn, dict):
            raise ValueError(f"{where} of {what} must be an object, but is {noun(turn)} instead")
        turn = {key: held for key, held in turn.items() if held is not None}
        for said in _speakers(turn):
            where = f"message {len(messages) + 1}"
            marks.append(_mark(said if said is turn else {**turn, **said}, where))
            messages.append(_message(said, where, template))
    return messages, marks


def converse(
    messages: Sequence[Message],
    marks: Sequence[bool | None],
    tools: Sequence[Message] = (),
    first: int = 0,
) -> Conversation:
    """Put a conversation together; turns before message `first` carry no loss.

    Raises:
        ValueError: a turn that is not the assistant's is marked to carry loss.
    """
    carrying, empty = [], 0
    for number, (message, mark) in enumerate(zip(messages, marks, strict=True)):
        if message["role"] != "assistant":
            if mark:
                raise ValueError(
                    f"message {number + 1} is the {message['role']}'s and marked to carry loss, "
                    "but only the assistant's turns can: take the mark away"
                )
        elif number >= first and mark is not False:
            said = [message.get(key) for key in ("content", "tool_calls")]
            spoken = any(part.strip() if isinstance(part, str) else part for part in said)
            carrying += [number] if spoken else []
            empty += not spoken
    silenced = tuple(number for number, mark in enumerate(marks) if mark is False)
    return Conversation(tuple(messages), tuple(carrying), tuple(tools), silenced, empty)


def read_tools(value: Any) -> tuple[Message, ...]:
    """Return descriptions of tools, each as `{"type": "function", "function": {…}}`.

    Raises:
        ValueError: it is neither a list of objects nor a JSON text of one.
    """
    if value is None or value == "":
        return ()
    tools = as_list(value, "the list of tools")
    for tool in tools:
        if not isinstance(tool, dict):
            raise ValueError(f"a tool must be an object, but is {noun(tool)} instead")
    return tuple(
        {"type": "function", "function": tool} if "name" in tool else tool for tool in tools
    )


def listed_turns(value: Any) -> list[Any] | None:
    """Return a list, or the turns that a JSON text lists; None: it is no list, or another text."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value if isinstance(value, list) else None
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    spoken = [isinstance(turn, dict) and _is_turn(turn) for turn in found]
    return found if spoken and all(spoken) else None


def role_of(turn: object) -> str | None:
    """Return the role that a turn has, one of `ROLES`; None: none that is known, or no turn."""
    if not isinstance(turn, dict):
        return None
    role = next((turn[key] for key in ROLE_KEYS if turn.get(key) is not None), None)
    return ROLE_OF.get(role.strip().lower()) if isinstance(role, str) else None


def _is_turn(turn: Mapping[str, Any]) -> bool:
    """Whether an object is a turn, and not of other things that have roles, as people."""
    return role_of(turn) is not None and any(k in turn for k in (*CONTENT_KEYS, "tool_calls"))


def as_list(value: Any, what: str) -> list[Any]:
    """Return a list, or the list that a JSON text holds.

    Raises:
        ValueError: it is neither.
    """
    found = value
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"{what} is a text that is no JSON list") from None
    if not isinstance(found, list):
        raise ValueError(f"{what} must be a list, but is {noun(value)} instead")
    return found


def checked(value: Any, what: str) -> str:
    """Return a value that is a text.

    Raises:
        ValueError: it is none, or none that UTF-8 can hold.
    """
    if not isinstance(value, str):
        raise ValueError(f"{what} must be text, but is {noun(value)} instead")
    try:
        if not value.isascii():
            value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} holds half of a surrogate pair, which is not a text") from None
    return value


def noun(value: Any) -> str:
    """Return what kind of value it is, in words."""
    if value is None:
        return "null"
    names = {str: "a text", bool: "a boolean", list: "a list", dict: "an object"}
    numbers = {int: "a number", float: "a number"}
    return (names | numbers).get(type(value), f"a {type(value).__name__}")


def _by_turns(value: Message) -> Any:
    """Return the turns of an object that has a list for each key, as `datasets` stores them."""
    lists = [held for held in value.values() if isinstance(held, list)]
    if not lists or len(lists) < len(value) or len({len(held) for held in lists}) > 1:
        return value
    return [dict(zip(value, held, strict=True)) for held in zip(*lists, strict=True)]


def _speakers(turn: Message) -> list[Message]:
    """Return the turns in an object: itself, or one for each key where the keys are roles."""
    if any(key in turn for key in ROLE_KEYS):
        return [turn]
    spoken = {key: held for key, held in turn.items() if str(key).lower() in SPEAKERS}
    if not spoken:
        return [turn]
    return [{"role": SPEAKERS[key.lower()], "content": held} for key, held in spoken.items()]


def _mark(turn: Mapping[str, Any], where: str) -> bool | None:
    """Return whether a turn is marked to carry loss, or all its parts; None: it is not marked.

    Raises:
        ValueError: a mark is not clear, or only some of its parts are without loss.
    """
    own = _own_mark(turn, where)
    content = next((turn[key] for key in CONTENT_KEYS if key in turn), None)
    if not isinstance(content, list):
        return own
    parts = enumerate(content, 1)
    marks = [
        _own_mark(part, f"part {number} of {where}") if isinstance(part, dict) else None
        for number, part in parts
    ]
    meant = {own if mark is None else mark for mark in marks} or {own}
    if len(meant) > 1 and False in meant:
        raise ValueError(
            f"some parts of {where} are marked to carry no loss, but a turn carries it whole: "
            "mark all of them alike, or the turn itself"
        )
    return next((mark for mark in meant if mark is not None), None)


def _own_mark(turn: Mapping[str, Any], where: str) -> bool | None:
    """Return whether an object is marked to carry loss; None where it is not marked."""
    if MARKS.isdisjoint(turn):
        return None
    for key in UNCLEAR:
        if turn.get(key) is not None:
            raise ValueError(f"'{key}' of {where} is not clear: mark turns by 'train': true, false")
    marks = {k: turn[k] for k in (*WITH_LOSS, *WITHOUT_LOSS) if turn.get(k) is not None}
    for key, held in marks.items():
        if held not in (0, 1):
            raise ValueError(f"'{key}' of {where} must be 0 or 1, but is {held!r} instead")
    meant = {bool(held) == (key in WITH_LOSS) for key, held in marks.items()}
    if len(meant) > 1:
        raise ValueError(f"{' and '.join(marks)} of {where} contradict each other: keep one")
    return meant.pop() if meant else None


def _message(turn: Message, where: str, template: str) -> Message:
    role_key = next((key for key in ROLE_KEYS if key in turn), "role")
    content_key = next((key for key in CONTENT_KEYS if key in turn), "content")
    name = checked(turn.get(role_key), f"the role of {where}")
    own = name if f"'{name}'" in template or f'"{name}"' in template else None
    role = ROLE_OF.get(name.strip().lower(), own)
    if role is None:
        raise ValueError(
            f"the role of {where} must be one of {', '.join(list(ROLES)[:4])}, but is "
            f"'{printable(name, 40)}' instead{did_you_mean(name, ROLE_OF)}"
        )
    known = {role_key, content_key, *WITH_LOSS, *WITHOUT_LOSS, "tool_calls", "function_call"}
    message = {key: held for key, held in turn.items() if key not in known}
    message |= {"role": "assistant" if role == "call" else role, "content": None}
    if content_key in turn:
        message["content"] = _content(turn[content_key], where)
    given = as_list(turn.get("tool_calls", []), f"the calls of {where}")
    given = [*given, turn["function_call"]] if turn.get("function_call") else given
    if role == "call" and "tool_calls" in template:
        given, message["content"] = _spelt_calls(message["content"], where), None
    if given:
        message["tool_calls"] = [_call(call, where) for call in given]
    elif message["content"] is None:
        checked(None, f"the content of {where}")
    return message


def _content(value: Any, where: str) -> str:
    """Return a text, or the texts of a list of parts, joined."""
    if not isinstance(value, list):
        return checked(value, f"the content of {where}")
    texts = []
    for number, part in enumerate(value, 1):
        held = part.get("text") if isinstance(part, dict) else part
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind not in ("text", "input_text", "output_text"):
            raise ValueError(f"part {number} of {where} is of type '{kind}': only text can be read")
        texts.append(checked(held, f"part {number} of {where}"))
    return "".join(texts)


def _spelt_calls(text: str, where: str) -> list[Any]:
    """Return the calls that a turn's text spells in JSON."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(
            f"{where} is a call, but its text is no JSON: write name and arguments"
        ) from None
    return found if isinstance(found, list) else [found]


def _call(call: Any, where: str) -> Message:
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise ValueError(f"a call of {where} has no name: write name and arguments")
    arguments = inner.get("arguments", inner.get("parameters", {}))
    if isinstance(arguments, str):  # templates write an object as JSON, a text as a JSON text
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    around = {key: held for key, held in call.items() if key == "id"}
    function = {"name": inner["name"], "arguments": arguments}
    return {**around, "type": "function", "function": function}
