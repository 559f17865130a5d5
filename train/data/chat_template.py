"""A conversation written by the tokenizer's chat template, and compared with what was said.

What the template leaves out is refused, or counted where a part of a turn is left.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from train.data.tokenizer import Segments, Tokenizer
from train.data.turns import REASONING, Conversation, Message, checked
from train.text import listed

PARTS = re.compile(r"\n|</?[\w|]+>")  # what a template leaves out is whole lines, or within tags
SHORT = 200  # characters of a turn that may well stand within another
WRITES = "the text that the template writes"
ELSE = "give a --tokenizer whose template writes it, or --chat-template chatml"


def by_template(talk: Conversation, tokenizer: Tokenizer) -> tuple[Segments, int]:
    """Return a conversation's text, and of how many turns the template leaves a part out.

    It is given the first of several spellings of the messages that it takes and leaves nothing out
    of: some want a call's arguments as a text, null or an empty text where nothing is said, or the
    text as a list of parts.

    Raises:
        ValueError: it takes none of them, or leaves out turns, calls or tools.
    """
    tried: list[list[Message]] = []
    refusal: ValueError | None = None
    for content, call in product((_silent, _as_it_is, _filled, _parted), (_as_it_is, _spelt)):
        messages = [call(content(message)) for message in talk.messages]
        if messages in tried:
            continue
        tried.append(messages)
        try:
            segments = tokenizer.chat(messages, talk.tools, talk.carrying) or ()
            text = checked("".join(part for part, _ in segments), WRITES)
            shortened = _compare(talk, text) + _compare_tools(talk, text, messages, tokenizer)
            return segments, shortened
        except ValueError as error:
            if refusal is None or ("leaves out" in str(error) and "leaves out" not in str(refusal)):
                refusal = error
    calls = any("tool_calls" in message for message in talk.messages)
    if (talk.tools or calls) and "tool_calls" not in tokenizer.template:
        raise ValueError(f"the template leaves out tools and calls, as it knows none: {ELSE}")
    raise refusal or ValueError("the tokenizer has no chat template")


def _silent(message: Message) -> Message:
    """Leave out a content that is null, which some templates write as `None`."""
    return {k: held for k, held in message.items() if k != "content" or held is not None}


def _as_it_is(message: Message) -> Message:
    return message


def _filled(message: Message) -> Message:
    return {**message, "content": message["content"] or ""}


def _parted(message: Message) -> Message:
    return {**message, "content": [{"type": "text", "text": message["content"] or ""}]}


def _spelt(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    functions = [dict(call["function"]) for call in message["tool_calls"]]
    for function in functions:
        if not isinstance(function["arguments"], str):
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    calls = zip(message["tool_calls"], functions, strict=True)
    return {**message, "tool_calls": [{**call, "function": made} for call, made in calls]}


def _compare(talk: Conversation, text: str) -> int:
    """Return of how many turns a part is missing in the text that a template made of them.

    White space does not count.

    Raises:
        ValueError: nothing is left of a turn, or a part of a call or of the tools is missing.
    """
    written, shortened = _Written(text), 0
    if "'type'" in text and "{'type':'text'" in written.squeezed:
        raise ValueError("the template takes no list of parts")
    for number, message in enumerate(talk.messages, 1):
        for call in message.get("tool_calls", ()):
            parts = [call["function"]["name"], *_leaves(call["function"]["arguments"])]
            if not all(map(written.holds, parts)):
                raise ValueError(f"the template leaves out a call of message {number}: {ELSE}")
        content = message["content"] or ""
        missing = content and not written.holds(content) and not content.isspace()
        if missing and not any(map(written.holds, PARTS.split(content))):
            raise ValueError(
                f"the template leaves out message {number}, the {message['role']}'s: {ELSE}"
            )
        thoughts = [str(message.get(key) or "") for key in REASONING]
        shortened += bool(missing) or any(
            part.strip() and not written.holds(part) for part in thoughts
        )
    _compare_short(talk, written)
    return shortened


def _compare_short(talk: Conversation, written: _Written) -> None:
    """Refuse a text that holds a short turn less often than the turns do: one of them, all of which
    others hold, was left out.
    """
    held = [_squeeze(one["content"] or "") for one in talk.messages]
    held = [said for said in held if said and said in written.squeezed]
    for said in {one for one in held if len(one) <= SHORT and json.dumps(one) == f'"{one}"'}:
        if written.squeezed.count(said) < sum(one.count(said) for one in held):
            raise ValueError(f"the template leaves out a turn that says {listed([said])}: {ELSE}")


def _compare_tools(
    talk: Conversation, text: str, messages: Sequence[Message], tokenizer: Tokenizer
) -> int:
    """Return 1 where the template writes the tools without what they are for, else 0.

    A call names its tool, too; so where no descriptions tell, it is tried without the tools.

    Raises:
        ValueError: it writes nothing of the tools.
    """
    written, functions = _Written(text), [tool.get("function", tool) for tool in talk.tools]
    told = [str(one.get("description") or "") for one in functions]
    if functions and all(told) and all(map(written.holds, told)):
        return 0
    missing = [one for one in functions if not written.holds(str(one.get("name", "")))]
    if functions and not missing:
        try:
            bare = tokenizer.chat(messages, (), talk.carrying) or ()
        except ValueError:  # it wants the tools
            bare = ()
        missing = functions if "".join(part for part, _ in bare) == text else []
    if missing:
        names = [str(one.get("name", "")) for one in missing]
        raise ValueError(f"the template leaves out the tools, as {listed(names)}: {ELSE}")
    return int(any(said and not written.holds(said) for said in told))


@dataclass(frozen=True)
class _Written:
    """A text, to be looked through for others without heed of white space."""

    text: str

    @cached_property
    def squeezed(self) -> str:
        return _squeeze(self.text)

    def holds(self, part: str) -> bool:
        """Whether a text that is not blank stands in it, as it is or within a JSON text."""
        if not part or part.isspace():
            return False
        if part in self.text:
            return True
        part = _squeeze(part)
        return part in self.squeezed or json.dumps(part, ensure_ascii=False)[1:-1] in self.squeezed


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _leaves(value: Any) -> Iterator[str]:
    """Yield the texts in a call's arguments."""
    if isinstance(value, str):
        yield from [value] if value.strip() else []
    elif isinstance(value, dict | list):
        for held in value.values() if isinstance(value, dict) else value:
            yield from _leaves(held)
