"""Which tokenizer a run means, and how it is loaded: Hugging Face's or SentencePiece's."""

from __future__ import annotations

import json
from pathlib import Path

from train.config import ModelConfig
from train.data.source import Key, revision, stamp
from train.data.tokenizer import Tokenizer
from train.errors import DataError
from train.paths import looks_local

_FILES = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template")


def load_tokenizer(model: ModelConfig) -> Tokenizer:
    """Load `--tokenizer`, or else the tokenizer of the model.

    Raises:
        DataError: there is no tokenizer at that place, or it cannot be read.
    """
    name = tokenizer_name(model)
    pieces = _sentencepiece_file(Path(name).expanduser())
    if pieces is not None:
        from train.data.tokenizer_sp import SentencePieceTokenizer

        _require_nothing_else(Path(name).expanduser())
        return SentencePieceTokenizer.load(pieces)
    if looks_local(name) and not Path(name).expanduser().exists():
        raise DataError(
            f"the tokenizer '{name}' does not exist: give --tokenizer an existing Hugging Face "
            "folder, tokenizer.json or SentencePiece .model"
        )
    from train.data.tokenizer_hf import HuggingFaceTokenizer

    return HuggingFaceTokenizer.load(name, model.trust_remote_code)


def tokenizer_name(model: ModelConfig) -> str:
    """Return the folder, file or hub name that the tokenizer is loaded from.

    Raises:
        DataError: neither a model nor a tokenizer is named.
    """
    name = model.tokenizer or model.name_or_path
    if not name:
        raise DataError("no tokenizer is named: give --tokenizer or --model-name-or-path")
    return name


def tokenizer_key(model: ModelConfig) -> Key:
    """Return what changes when the tokenizer's files do, without loading it."""
    name = tokenizer_name(model)
    path = Path(name).expanduser()
    if not path.exists():
        return (("hub", name, revision(name, "model")),)
    if path.is_file():
        return stamp([path])
    files = [p for p in path.iterdir() if p.name.startswith(_FILES) or ".model" in p.name]
    return stamp(sorted(files))


def _require_nothing_else(path: Path) -> None:
    """Refuse a folder whose tokenizer is more than its SentencePiece model.

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
