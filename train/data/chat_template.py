"""A conversation written by the tokenizer's chat template, and compared with what was said.

What the template leaves out is refused, or counted where a part of a turn is left.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from train.data.columns import listed
from train.data.tokenizer import Segments, Tokenizer
from train.data.turns import REASONING, Conversation, Message, checked

PARTS = re.compile(r"\n|</?[\w|]+>")  # what a template leaves out is whole lines, or within tags
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
            return segments, _compare(talk, text)
        except ValueError as error:
            refusal = error if refusal is None or "leaves out" in str(error) else refusal
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
    for tool in talk.tools:
        name = str(tool.get("function", tool).get("name", ""))
        if not written.holds(name):
            raise ValueError(f"the template leaves out the tools, as {listed([name])}: {ELSE}")
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
    return shortened


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
