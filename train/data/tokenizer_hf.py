"""Tokenizers of Hugging Face folders, hub names and bare tokenizer.json files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from train.data.tokenizer import Encoded, Segment, TokenizerInfo
from train.data.tokenizer_folder import load_own
from train.data.turn_spans import MARK, asks_always, find_turns, segments_of
from train.errors import DataError

NAMED = ("reasoning_content", "thinking", "reasoning")
COMMENT = re.compile(r"{#.*?#}", re.DOTALL)
GENERATION = re.compile(r"{%[-+]?\s*generation\s*[-+]?%}")


@dataclass(frozen=True)
class HuggingFaceTokenizer:
    """A tokenizer of transformers that runs on the tokenizers library."""

    inner: Any
    date: datetime

    @classmethod
    def load(
        cls, path: Path, date: str, *, trust_remote_code: bool = False
    ) -> HuggingFaceTokenizer:
        """Load a folder, or a bare tokenizer.json.

        Args:
            date: what a template that asks for the date is told, as `2026-01-31`.

        Raises:
            DataError: it is not a fast tokenizer, or its files contradict each other.
            Exception: whatever transformers raises for files that it cannot read.
        """
        inner = load_own(path, trust_remote_code=trust_remote_code)
        if not getattr(inner, "is_fast", False):
            raise DataError(
                f"the tokenizer of '{path}' is a {type(inner).__name__}, which cannot tell where a "
                "token lies in the text: give --tokenizer one that has a tokenizer.json"
            )
        return cls(inner, datetime.fromisoformat(date))

    def with_template(self, text: str | None) -> HuggingFaceTokenizer:
        """Return the same with another chat template, or without one; `save` writes that one.

        Raises:
            DataError: it is no template.
        """
        from jinja2 import TemplateSyntaxError

        inner = copy(self.inner)
        inner.chat_template = text
        made = HuggingFaceTokenizer(inner, self.date)
        if text is None:
            return made
        problem = "" if "messages" in text else "it writes no 'messages'"
        try:
            made._render([{"role": "user", "content": MARK}])
        except TemplateSyntaxError as error:
            problem = f"{error.message}, line {error.lineno}"
        except Exception:
            pass
        if problem:
            raise DataError(f"--chat-template holds no chat template ({problem}): correct it")
        return made

    @cached_property
    def info(self) -> TokenizerInfo:
        """The ids as the tokenizer's files name them."""
        bos, eos, pad = self.inner.bos_token_id, self.inner.eos_token_id, self.inner.pad_token_id
        opening, closing = _around(list(self.inner("a")["input_ids"]), self.encode("a"))
        unknown = self.inner.unk_token_id
        text = "\n".join(
            (self.inner.backend_tokenizer.to_str(), str(self.inner.chat_template), f"{bos} {eos}")
        )
        return TokenizerInfo(
            bos=bos,
            eos=eos,
            pad=pad if pad is not None else eos or 0,
            opening=opening,
            closing=closing if eos is None or eos in closing else (*closing, eos),
            vocab_size=len(self.inner),
            fingerprint=hashlib.sha256(text.encode()).hexdigest()[:16],
            unknown=None if unknown in (bos, eos, pad) else unknown,
        )

    @cached_property
    def _backend(self) -> Any:
        """A copy that pads and cuts nothing, and whose spans keep a token's leading space."""
        from tokenizers import Tokenizer, processors

        copy = Tokenizer.from_str(self.inner.backend_tokenizer.to_str())
        copy.no_padding()
        copy.no_truncation()
        copy.post_processor = processors.Sequence([])
        return copy

    @cached_property
    def template(self) -> str:
        """The chat template that the tokenizer's files bring, or an empty text."""
        return str(self.inner.get_chat_template()) if self.inner.chat_template else ""

    @cached_property
    def marks(self) -> re.Pattern[str] | None:
        """Finds what the template writes around a turn, and nobody within one: special tokens, or
        where it uses none, the line before a question (`[INST]`, `USER:`).
        """
        if not self.template:
            return None
        ends = {self.inner.bos_token, self.inner.eos_token, self.inner.pad_token}
        added = self.inner.added_tokens_decoder.values()
        special = {str(token.content) for token in added if token.special} - ends
        try:
            before = self._render([{"role": "user", "content": MARK}]).partition(MARK)[0].strip()
        except Exception:  # jinja2 raises what the template tells it to
            before = ""
        line = before.rpartition("\n")[2]
        for end in filter(None, ends):
            line = line.replace(end, "").strip()
        named = any(token in line for token in special) or len(line) < 3
        found = sorted(special if named else special | {line})
        # A literal at the beginning is found far more quickly than one of several.
        pairs = zip(found[0], found[-1], strict=False) if found else ()
        head = "".join(a for a, b in takewhile(lambda pair: pair[0] == pair[1], pairs))
        tails = "|".join(re.escape(mark.removeprefix(head)) for mark in found)
        return re.compile(f"{re.escape(head)}(?:{tails})") if found else None

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str], cuts: Sequence[Sequence[int]]) -> list[Encoded]:
        """Return ids, and how many stand before each cut."""
        found = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [
            (item.ids, [_count(item, cut) for cut in where])
            for item, where in zip(found, cuts, strict=True)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens."""
        numbers = [int(number) for number in ids]
        return str(self.inner.decode(numbers, skip_special_tokens=True))

    def spelling(self, ids: Sequence[int]) -> str:
        """Return the tokens' names, one after another."""
        return "".join(self.inner.convert_ids_to_tokens([int(number) for number in ids]))

    def ends_turn(self, text: str) -> str | None:
        """Return the longest added token that the text ends in, blanks left out."""
        text = text.rstrip()
        if not text.endswith(self._added):
            return None
        return max((token for token in self._added if text.endswith(token)), key=len)

    @cached_property
    def _added(self) -> tuple[str, ...]:
        return tuple(str(token) for token in self.inner.get_added_vocab() if str(token).strip())

    def show(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens included."""
        return str(self.inner.decode([int(number) for number in ids], skip_special_tokens=False))

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        carrying: Collection[int] | None = None,
    ) -> tuple[Segment, ...] | None:
        """Render a conversation by the template; None where there is none.

        Raises:
            ValueError: the template refuses the conversation, or hides the assistant's turns.
        """
        if not self.template:
            return None
        turns = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
        carrying = turns if carrying is None else carrying
        template, marked = self._templates[bool(tools)]
        try:
            if marked:
                return self._marked(messages, tools, template, [k in carrying for k in turns])
            if self._asks_always:
                raise ValueError(
                    "the chat template asks for another answer behind every conversation, and that "
                    "would be trained: correct it, or give --chat-template chatml"
                )
            given = [_with_reasoning(message) for message in messages]
            return find_turns(given, partial(self._render, tools=tools), carrying)
        except ValueError:
            raise
        except Exception as error:  # jinja2 raises what the template tells it to
            raise ValueError(f"the chat template refuses this conversation ({error})") from None

    def save(self, folder: Path) -> None:
        """Write the tokenizer as transformers does, of a class that takes the files as they are."""
        self.inner.save_pretrained(str(folder))
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        settings.pop("split_special_tokens", None)  # samples hold them whole
        text = json.dumps(settings, indent=2, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")

    @cached_property
    def _templates(self) -> tuple[tuple[str, bool], tuple[str, bool]]:
        """The template without and with tools, and whether it has {% generation %} marks."""
        texts = [self.inner.get_chat_template(tools=tools) for tools in (None, [dict[str, Any]()])]
        plain, tooled = ((text, bool(GENERATION.search(COMMENT.sub("", text)))) for text in texts)
        return plain, tooled

    @cached_property
    def _asks_always(self) -> bool:
        return asks_always(self._render)

    @cached_property
    def _special(self) -> Mapping[str, Any]:
        return {
            role: [str(name) for name in names] if isinstance(names, list) else str(names)
            for role, names in self.inner.special_tokens_map.items()
        }

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        opened: bool = False,  # noqa: FBT001, FBT002  (a Render)
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        # Not apply_chat_template, which takes keys without a value away: some templates want them.
        # Nor what stands between: it copies the conversation, for each of its turns anew.
        from transformers.utils.chat_template_utils import _compile_jinja_template

        compiled: Any = _compile_jinja_template(self._templates[bool(tools)][0])  # kept by its text
        if not isinstance(compiled.globals, dict):  # a chain of maps: copied for each rendering
            compiled.globals = dict(compiled.globals)
        return str(
            compiled.render(
                messages=messages,
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=opened,
                strftime_now=self.date.strftime,  # the run's day, and not the clock's
                **self._special,
            )
        )

    def _marked(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        template: str,
        carrying: Sequence[bool],
    ) -> tuple[Segment, ...]:
        """Use the template's own {% generation %} marks; `carrying`: which of the assistant's
        turns carry loss.
        """
        from transformers.utils.chat_template_utils import (
            _compile_jinja_template,
            _render_with_assistant_indices,
        )

        render: Any = _render_with_assistant_indices
        text, spans = render(
            _compile_jinja_template(template),
            [dict(_with_reasoning(message)) for message in messages],
            [dict(tool) for tool in tools] or None,
            None,
            add_generation_prompt=False,
            strftime_now=self.date.strftime,
            **self._special,
        )
        if all(carrying):
            return segments_of(text, spans)
        if len(spans) != len(carrying):
            raise ValueError(
                f"the chat template marks {len(spans)} pieces as the assistant's in {len(carrying)}"
                " turns, so the turns that carry no loss cannot be told apart: use another template"
            )
        return segments_of(text, [span for span, kept in zip(spans, carrying, strict=True) if kept])


def _with_reasoning(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give a message's reasoning the names under which templates look for it, as transformers."""
    said = next((message[key] for key in NAMED if message.get(key) is not None), None)
    return message if said is None else {"thinking": said, **message, "reasoning_content": said}


def _around(whole: list[int], plain: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that a tokenizer puts before and behind a text's own, by its post-processor.

    Raises:
        DataError: the text's own ids are not among them.
    """
    for start in range(len(whole) - len(plain) + 1):
        end = start + len(plain)
        if whole[start:end] == plain:
            return tuple(whole[:start]), tuple(whole[end:])
    raise DataError(
        f"the tokenizer's post-processor changes a text's own ids ({plain} become {whole}): give "
        "--tokenizer one that only puts tokens around a text"
    )


def _count(found: Any, cut: int) -> int:
    """Return how many tokens lie before a character, by the last character of each."""
    number = found.char_to_token(cut)
    if number is None:  # blanks that belong to no token, or the end
        return sum(max(start, end - 1) < cut for start, end in found.offsets)
    # Of a character in several tokens the first counts, and spans without a character before it.
    spans = (found.token_to_chars(k) or (-1, -1) for k in range(number - 1, -1, -1))
    back = takewhile(lambda span: max(span[0], span[1] - 1) >= cut, spans)
    return int(number) - sum(1 for _ in back)
