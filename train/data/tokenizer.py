"""From text to token ids and back, whatever library the tokenizer comes from.

A text is tokenized whole, so its ids are those that the tokenizer's own library gives for it; where
a part of it begins is asked for by its character, so masks are exact to the token.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Segment = tuple[str, bool]  # a piece of text, and whether it carries loss
Segments = tuple[Segment, ...]  # a text that is tokenized whole
# A text's ids, and how many of them stand before each of the characters that were asked for.
Encoded = tuple[list[int], list[int]]


@dataclass(frozen=True)
class TokenizerInfo:
    """What the rest of a run needs of a tokenizer; an id is None where it has no such token.

    `opening` and `closing`: what a sample begins and ends with, by the tokenizer's own rule; the
    latter holds the end-of-sequence token where there is one. `pad` is always an id that may be
    used to fill up. `unknown` stands for nothing but text that has no token.
    """

    bos: int | None
    eos: int | None
    pad: int
    opening: tuple[int, ...]
    closing: tuple[int, ...]
    vocab_size: int
    fingerprint: str
    unknown: int | None = None


class Tokenizer(Protocol):
    """Text to ids and back; special tokens are never added by `encode`."""

    @property
    def info(self) -> TokenizerInfo:
        """The ids of the special tokens, the vocabulary's size and the fingerprint."""
        ...

    @property
    def template(self) -> str:
        """The text of the template by which `chat` renders; empty where there is none."""
        ...

    @property
    def marks(self) -> re.Pattern[str] | None:
        """Finds what the template writes around a turn, and nobody within one."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens."""
        ...

    def spelling(self, ids: Sequence[int]) -> str:
        """Return ids as their tokens are named in the vocabulary, special tokens included."""
        ...

    def ends_turn(self, text: str) -> str | None:
        """Return the added token that a text ends in, blanks left out; None where it is text."""
        ...

    def encode_batch(self, texts: Sequence[str], cuts: Sequence[Sequence[int]]) -> list[Encoded]:
        """Return the ids of each text, and how many stand before each of its `cuts`, ascending.

        A token belongs to the part of a text in which its last character lies.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; special tokens are left out."""
        ...

    def show(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens included."""
        ...

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        carrying: Collection[int] | None = None,
    ) -> tuple[Segment, ...] | None:
        """Render a conversation by the tokenizer's template; None where it has no template.

        Args:
            messages: with `role` and whatever the template reads.
            tools: descriptions of functions, given to the template.
            carrying: which messages carry loss, from 0; None: all of the assistant's.

        Raises:
            ValueError: the template refuses the conversation, or hides the assistant's turns.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files to an existing folder, for `AutoTokenizer` where possible."""
        ...
