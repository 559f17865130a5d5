"""A Hugging Face folder's tokenizer, taken from its own files and checked against them.

transformers may build a tokenizer anew from the class that a folder names, with another
pre-tokenizer than its tokenizer.json has. So that file is loaded as it stands, whatever the class.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from train.data.tokenizer import Tokenizer
from train.errors import DataError

CONFIG = "tokenizer_config.json"
BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "[BOS]", "[CLS]")
EOS_NAMES = ("</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>", "<|im_end|>", "[EOS]", "[SEP]")
PROBES = (
    "Hello world, I'm sure we'll see; it's 12345 + 678 = 15000 in 2024.",
    "def f(x):\n    return x\n\n\n\tdone  \r\n",
    "  leading and trailing  ",
    "naïve café Straße ÄÖÜ 日本語 데이터 Привет مرحبا 🙂 𝄞 ﬁ ½",
    "https://example.org/a_b-c?d=%20#e CamelCase __init__ <tag> {x: [1.5e-3]}",
)


def load_own(path: Path, *, trust_remote_code: bool) -> Any:
    """Load the tokenizer of a folder or of a bare tokenizer.json, as transformers wraps it.

    Raises:
        DataError: it gives other ids than the folder's own file, or its files contradict another.
        Exception: whatever transformers raises for files that it cannot read.
    """
    from transformers import PreTrainedTokenizerFast

    file = path if path.is_file() else path / "tokenizer.json"
    config = path / CONFIG
    if file.is_file() and not config.is_file():
        return _bare(file)
    pieces = path / "tokenizer.model"
    if not file.is_file() and not pieces.is_file():
        from transformers import AutoTokenizer  # it imports torch, which takes seconds

        made = AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code)
        return _with_template(made, path)
    # Without a tokenizer.json transformers writes a first token only where it is told to.
    adds = settings_of(path, config.name).get("add_bos_token", True)
    options = {} if file.is_file() else {"add_bos_token": adds}
    found = cast(Any, PreTrainedTokenizerFast).from_pretrained(str(path), **options)
    found = _with_template(found, path)
    _require_template(found, path)
    _require_added(found, path)
    if file.is_file():
        from tokenizers import Tokenizer

        own = Tokenizer.from_file(str(file))
        own.no_truncation()
        own.no_padding()
        _require_named(found, own, path)
        _require_same_ids(found, lambda text: own.encode(text, add_special_tokens=False).ids, file)
    else:
        from sentencepiece import SentencePieceProcessor

        _require_same_ids(found, SentencePieceProcessor(model_file=str(pieces)).encode, pieces)
    return found


def _with_template(found: Any, folder: Path) -> Any:
    """Give a tokenizer that has no template the one that a processor beside it keeps."""
    held = settings_of(folder, "chat_template.json").get("chat_template")
    if held and not found.chat_template:
        found.chat_template = held
    return found


def _bare(path: Path) -> Any:
    """Wrap a tokenizer.json; it does not say which tokens begin and end a text, so they are found
    by their usual names.
    """
    from transformers import PreTrainedTokenizerFast

    inner: Any = cast(Any, PreTrainedTokenizerFast)(tokenizer_file=str(path))
    vocab = inner.get_vocab()
    for role, names in (("bos_token", BOS_NAMES), ("eos_token", EOS_NAMES)):
        known = [name for name in names if name in vocab]
        if known:
            setattr(inner, role, known[0])
    return inner


def settings_of(folder: Path, *names: str) -> dict[str, Any]:
    """Return what JSON files of a folder hold, later ones over earlier ones; none is needed.

    Raises:
        DataError: one is there and is not a JSON object.
    """
    found: dict[str, Any] = {}
    for file in (folder / name for name in names):
        try:
            content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{file} is no JSON ({error}): mend or replace it") from None
        if not isinstance(content, dict):
            raise DataError(f"{file} must hold a JSON object, but holds {type(content).__name__}")
        found |= content
    return found


def settings_told(path: Path, tokenizer: Tokenizer, *, begun: bool) -> tuple[str, ...]:
    """Say where the files of a folder contradict each other about the first and last token.

    Args:
        begun: whether samples begin as the tokenizer's own files say, and not as a template does.
    """
    if not path.is_dir():
        return ()
    info, said = tokenizer.info, []
    own, other = (settings_of(path, name) for name in (CONFIG, "special_tokens_map.json"))
    first = tokenizer.spelling(info.opening)
    asked = own.get("add_bos_token") if (path / "tokenizer.json").is_file() and begun else None
    if isinstance(asked, bool) and asked != bool(first):
        said.append(
            f"the tokenizer's {CONFIG} says add_bos_token {str(asked).lower()}, but by its "
            f"tokenizer.json samples begin with {first or 'no such token'}"
        )
    if own.get("split_special_tokens"):
        said.append(
            f"the tokenizer's {CONFIG} says split_special_tokens, but samples hold special tokens "
            "whole, and the saved tokenizer does so, too"
        )
    spaced = tokenizer.spelling(tokenizer.encode("a")[:1]).startswith("\N{LOWER ONE EIGHTH BLOCK}")
    if own.get("add_prefix_space") is False and spaced and not (path / "tokenizer.json").is_file():
        said.append(
            f"the tokenizer's {CONFIG} says add_prefix_space false, but by its tokenizer.model a "
            "text begins with a space"
        )
    for role, used in (("bos_token", info.bos), ("eos_token", info.eos)):
        values = (own.get(role), other.get(role))
        names = [one.get("content") if isinstance(one, dict) else one for one in values if one]
        if len(set(map(str, names))) > 1 and used is not None:
            said.append(
                f"the tokenizer's {CONFIG} and special_tokens_map.json name {names[0]} and "
                f"{names[1]} as {role}: {tokenizer.spelling([used])} is taken"
            )
    return tuple(said)


def added_tokens(folder: Path) -> dict[int, str]:
    """Return the tokens that a folder lists besides its vocabulary, by id.

    Raises:
        DataError: a file that lists them is not a JSON object.
    """
    decoder = settings_of(folder, CONFIG).get("added_tokens_decoder")
    if decoder is None:  # the place where older versions of transformers list them
        listed = settings_of(folder, "added_tokens.json")
        return {number: name for name, number in listed.items()}
    found = {}
    for number, token in decoder.items():
        found[int(number)] = token["content"] if isinstance(token, dict) else str(token)
    return found


def _require_template(found: Any, path: Path) -> None:
    template = found.get_chat_template() if found.chat_template else ""
    if not isinstance(template, str):
        raise DataError(
            f"the chat template of '{path}' must be text, but is {type(template).__name__}: "
            "correct tokenizer_config.json"
        )


def _require_added(found: Any, path: Path) -> None:
    """Refuse a folder that lists a token under another id than it gets."""
    for number, name in added_tokens(path).items():
        got = found.convert_tokens_to_ids(name)
        if got != number:
            raise DataError(
                f"the files of the tokenizer in '{path}' contradict each other: {name!r} has the "
                f"id {number} in its list of added tokens, but {got} by the vocabulary: correct one"
            )


def _require_named(found: Any, own: Any, path: Path) -> None:
    """Refuse a last token that no file lists and that would be made up."""
    name = found.eos_token
    if (
        name is not None
        and own.token_to_id(name) is None
        and name not in added_tokens(path).values()
    ):
        raise DataError(
            f"the eos_token {name!r} that '{path}' names is not in its vocabulary: correct it in "
            "tokenizer_config.json"
        )


def _require_same_ids(found: Any, own: Callable[[str], list[int]], file: Path) -> None:
    for text in PROBES:
        if found.encode(text, add_special_tokens=False) != own(text):
            raise DataError(
                f"transformers gives other ids than '{file}' itself, for example for {text[:20]!r}:"
                " give --tokenizer that file alone, or a folder with the right tokenizer.json"
            )
