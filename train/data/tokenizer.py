"""From text to token ids and back, whatever library the tokeniser comes from.

A text is tokenised whole, so its ids are those that the tokeniser's own library gives for it; each
token also names the character that decides what it belongs to, so masks are exact to the token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from train.config import ModelConfig
from train.data.source import Key, looks_local, revision, stamp
from train.errors import DataError

Segment = tuple[str, bool]  # a piece of text, and whether it carries loss
Encoded = tuple[NDArray[np.int32], NDArray[np.int64]]
NAMES = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template")


@dataclass(frozen=True)
class TokenizerInfo:
    """What the rest of a run needs of a tokeniser; an id is None where it has no such token.

    `adds_bos`: a sample begins with `bos`. `pad` is always an id that may be used to fill up.
    """

    bos: int | None
    eos: int | None
    pad: int
    adds_bos: bool
    vocab_size: int
    fingerprint: str


class Tokenizer(Protocol):
    """Text to ids and back; special tokens are never added by `encode`."""

    @property
    def info(self) -> TokenizerInfo:
        """The ids of the special tokens, the vocabulary's size and the fingerprint."""
        ...

    @property
    def has_template(self) -> bool:
        """Whether `chat` renders conversations."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        """Return, for each text, its ids (T,) and the character each belongs to (T,)."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; special tokens are left out."""
        ...

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> tuple[Segment, ...] | None:
        """Render a conversation by the tokeniser's template; None where it has no template.

        Raises:
            ValueError: the template refuses the conversation, or hides the assistant's turns.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the tokeniser's files to an existing folder, for `AutoTokenizer` where possible."""
        ...


def load_tokenizer(model: ModelConfig) -> Tokenizer:
    """Load `--tokenizer`, or else the tokeniser of the model.

    Raises:
        DataError: there is no tokeniser at that place, or it cannot be read.
    """
    name = tokenizer_name(model)
    pieces = _sentencepiece_file(Path(name).expanduser())
    if pieces is not None:
        from train.data.tokenizer_sp import SentencePieceTokenizer

        _require_nothing_else(Path(name).expanduser())
        return SentencePieceTokenizer.load(pieces)
    if looks_local(name) and not Path(name).expanduser().exists():
        raise DataError(
            f"the tokeniser '{name}' does not exist: give --tokenizer an existing Hugging Face "
            "folder, tokenizer.json or SentencePiece .model"
        )
    from train.data.tokenizer_hf import HuggingFaceTokenizer

    return HuggingFaceTokenizer.load(name, model.trust_remote_code)


def tokenizer_name(model: ModelConfig) -> str:
    """Return the folder, file or hub name that the tokeniser is loaded from.

    Raises:
        DataError: neither a model nor a tokeniser is named.
    """
    name = model.tokenizer or model.name_or_path
    if not name:
        raise DataError("no tokeniser is named: give --tokenizer or --model-name-or-path")
    return name


def tokenizer_key(model: ModelConfig) -> Key:
    """Return what changes when the tokeniser's files do, without loading it."""
    name = tokenizer_name(model)
    path = Path(name).expanduser()
    if not path.exists():
        return (("hub", name, revision(name, "model")),)
    if path.is_file():
        return stamp([path])
    files = [p for p in path.iterdir() if p.name.startswith(NAMES) or ".model" in p.name]
    return stamp(sorted(files))


def _require_nothing_else(path: Path) -> None:
    """Refuse a folder whose tokeniser is more than its SentencePiece model.

    Raises:
        DataError: it has a chat template or added tokens, which only a tokenizer.json would bring.
    """
    more = []
    for file, key in (("tokenizer_config.json", "chat_template"), ("added_tokens.json", None)):
        try:
            content = json.loads((path / file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if content.get(key) if key else content:
            more.append("a chat template" if key else "added tokens")
    if more:
        raise DataError(
            f"the folder '{path}' has {' and '.join(more)}, but no tokenizer.json that would bring "
            f"them along: write one with AutoTokenizer.from_pretrained(folder).save_pretrained("
            f"folder), or do without them by --tokenizer {path / 'tokenizer.model'}"
        )


def _sentencepiece_file(path: Path) -> Path | None:
    """Return the SentencePiece model that a path means.

    A folder with tokenizer.model and no tokenizer.json is read through sentencepiece: what
    AutoTokenizer (transformers 5.23) makes of it drops the leading space symbol.
    """
    if path.is_file():
        return path if path.suffix == ".model" or ".model." in path.name else None
    inside = path / "tokenizer.model"
    return inside if inside.is_file() and not (path / "tokenizer.json").exists() else None
