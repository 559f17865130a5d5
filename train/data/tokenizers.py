"""Which tokenizer a run means, and how it is loaded: Hugging Face's or SentencePiece's."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from train.config import ModelConfig
from train.data.chatml import CHATML, END, NONE, START, chatml
from train.data.source import Key, revision, stamp
from train.data.tokenizer import Tokenizer
from train.data.tokenizer_folder import PROBES, added_tokens, settings_of
from train.errors import DataError
from train.paths import looks_local

if TYPE_CHECKING:
    from train.data.tokenizer_hf import HuggingFaceTokenizer
    from train.data.tokenizer_sp import SentencePieceTokenizer

_BESIDE = (
    "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip
_FILES = (
    "tokenizer",
    "tekken",
    "special_tokens",
    "added_tokens",
    "vocab",
    "merges",
    "chat_template",
)


def load_tokenizer(model: ModelConfig, date: str | None = None) -> Tokenizer:
    """Load `--tokenizer`, or else the tokenizer of the model, with `--chat-template` if given.

    Args:
        date: what a chat template that asks for the date is told; today's by default.

    Raises:
        DataError: there is no tokenizer at that place, it cannot be read, its files contradict
            each other, or the template is none.
    """
    name = tokenizer_name(model)
    path = Path(name).expanduser()
    if not path.exists():
        path = _fetch(name, trust_remote_code=model.trust_remote_code)
    try:
        found = _load(path, date or today(), model)
        found.info.vocab_size  # noqa: B018  (what a file makes a library raise, it raises here)
        return found
    except DataError:
        raise
    except BaseException as error:  # libraries raise whatever files make them, tokenizers panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"no tokenizer can be loaded from '{name}' ({reason}): give --tokenizer a Hugging "
            "Face folder or name, a tokenizer.json or a SentencePiece .model"
        ) from None


def _load(path: Path, date: str, model: ModelConfig) -> Tokenizer:
    pieces = _sentencepiece_file(path)
    named = model.chat_template
    if pieces is not None and named in (None, NONE):
        from train.data.tokenizer_sp import SentencePieceTokenizer

        names = ("special_tokens_map.json", "tokenizer_config.json")
        plain = SentencePieceTokenizer.load(pieces, settings_of(path, *names))
        if path.is_file() or not _more(path, plain):
            return plain
    from train.data.tokenizer_hf import HuggingFaceTokenizer

    with TemporaryDirectory() as folder:
        if pieces is not None and path.is_file():  # transformers reads it in a folder only
            shutil.copyfile(pieces, Path(folder) / "tokenizer.model")
            path = Path(folder)
        found = HuggingFaceTokenizer.load(path, date, trust_remote_code=model.trust_remote_code)
    if named == NONE:
        return found.with_template(None)
    return found if named is None else found.with_template(_template(named, found))


def _template(name: str, tokenizer: HuggingFaceTokenizer) -> str:
    """Return the text of `--chat-template`.

    Raises:
        DataError: the file cannot be read.
    """
    if name == CHATML:
        info, vocabulary = tokenizer.info, tokenizer.inner.get_vocab()
        return chatml(
            opened=info.bos is not None and info.opening == (info.bos,),
            marked={START, END} <= vocabulary.keys(),
            closed=info.eos is not None,
        )
    try:
        return Path(name).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"--chat-template '{name}' cannot be read ({error}): give a file that holds a chat "
            f"template, or {CHATML}, or leave it out for the tokenizer's own"
        ) from None


def today() -> str:
    """Return the date, in UTC so that all hosts of a job say the same."""
    return datetime.now(UTC).date().isoformat()


def tokenizer_name(model: ModelConfig) -> str:
    """Return the folder, file or hub name that the tokenizer is loaded from.

    Raises:
        DataError: neither a model nor a tokenizer is named.
    """
    name = model.tokenizer or model.name_or_path
    if not name:
        raise DataError("no tokenizer is named: give --tokenizer or --model-name-or-path")
    return name


def unlike_own(model: ModelConfig) -> str:
    """Say that `--tokenizer` gives other ids than the model's own; empty where it does not."""
    if model.tokenizer is None or model.name_or_path is None:
        return ""
    try:
        own = load_tokenizer(replace(model, tokenizer=None, chat_template=None))
    except DataError:  # the model brings none
        return ""
    given = load_tokenizer(replace(model, chat_template=None))
    if all(own.encode(text) == given.encode(text) for text in PROBES):
        return ""
    return (
        f"--tokenizer {model.tokenizer} gives other ids than the model's own tokenizer: the model "
        "begins as one that has never seen such text; leave --tokenizer out unless that is meant"
    )


def tokenizer_key(model: ModelConfig) -> Key:
    """Return what changes when the tokenizer's files do, without loading it."""
    name, template = tokenizer_name(model), model.chat_template
    path = Path(name).expanduser()
    named: Key = () if template is None else ((template,),)
    if template not in (None, CHATML, NONE) and Path(str(template)).expanduser().is_file():
        named = stamp([Path(str(template)).expanduser()])
    if not path.exists():
        return (("hub", name, revision(name, "model")), *named)
    if path.is_file():
        return (*stamp([path]), *named)
    files = [p for p in path.iterdir() if p.name.startswith(_FILES) or ".model" in p.name]
    files += path.glob("additional_chat_templates/*.jinja")
    return (*stamp(sorted(files)), *named)


def copy_others(model: ModelConfig, folder: Path) -> None:
    """Copy the files of the run's tokenizer that are not in a saved folder, as they stand.

    llama.cpp reads a tokenizer.model, and older tools a vocab.json, beside the tokenizer.json that
    transformers is content with.
    """
    path = Path(tokenizer_name(model)).expanduser()
    if not path.exists():
        path = _fetch(str(path), trust_remote_code=model.trust_remote_code)
    for name in _BESIDE if path.is_dir() else ():
        if (path / name).is_file() and not (folder / name).exists():
            shutil.copyfile(path / name, folder / name)


def _fetch(name: str, *, trust_remote_code: bool) -> Path:
    """Return the folder of a hub name, fetched once.

    Raises:
        DataError: it can only be a local path, or the hub does not give it.
    """
    if looks_local(name):
        raise DataError(
            f"the tokenizer '{name}' does not exist: give --tokenizer an existing Hugging Face "
            "folder, tokenizer.json or SentencePiece .model"
        )
    from huggingface_hub import snapshot_download

    patterns = ["config.json", "tekken.json", "*.model", *(f"{stem}*" for stem in _FILES)]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns + ["*.py"] * trust_remote_code))
    except Exception as error:  # whatever a hub or a network does
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"no tokenizer can be fetched as '{name}' ({reason}): give --tokenizer a Hugging Face "
            "folder or name, a tokenizer.json or a SentencePiece .model"
        ) from None


def _more(folder: Path, plain: SentencePieceTokenizer) -> bool:
    """Whether a folder's tokenizer is more than its SentencePiece model: a template or new tokens.

    Such a folder is read by transformers, and the ids are compared with SentencePiece's own.
    """
    templates = (folder / "chat_template.jinja", folder / "chat_template.json")
    if plain.settings.get("chat_template") or any(path.exists() for path in templates):
        return True
    size = plain.processor.vocab_size()
    return any(
        number >= size or plain.processor.id_to_piece(number) != name
        for number, name in added_tokens(folder).items()
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
