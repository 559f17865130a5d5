"""SentencePiece `.model` files, read by sentencepiece itself."""

from __future__ import annotations

import hashlib
import json
import shutil
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from sentencepiece import SentencePieceProcessor

from train.data.tokenizer import Encoded, Segment, TokenizerInfo
from train.errors import DataError

SPACE = "▁"  # SentencePiece's visible space


@dataclass(frozen=True)
class SentencePieceTokenizer:
    """A SentencePiece model, the file that it came from, and what tokenizer_config.json says."""

    path: Path
    processor: SentencePieceProcessor
    settings: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path, settings: Mapping[str, Any] | None = None) -> SentencePieceTokenizer:
        """Read a `.model` file.

        Args:
            settings: of its folder, where that is what the user has named.

        Raises:
            DataError: the file is not a SentencePiece model.
        """
        try:
            return cls(path, SentencePieceProcessor(model_file=str(path)), settings or {})
        except (RuntimeError, OSError, ValueError):
            raise DataError(
                f"'{path}' is not a SentencePiece model that can be read: give --tokenizer "
                "another .model file or a Hugging Face folder"
            ) from None

    @cached_property
    def info(self) -> TokenizerInfo:
        """The ids, by tokenizer_config.json or else by SentencePiece's own flags.

        Raises:
            DataError: tokenizer_config.json names a token that the model does not have.
        """
        bos = self._named("bos_token", self.processor.bos_id())
        eos = self._named("eos_token", self.processor.eos_id())
        pad = self.processor.pad_id()
        opening = (bos,) if bos is not None and self.settings.get("add_bos_token", True) else ()
        digest = hashlib.sha256(self.path.read_bytes())
        digest.update(f"{opening} {bos} {eos}".encode())
        return TokenizerInfo(
            bos=bos,
            eos=eos,
            pad=pad if pad >= 0 else eos or 0,
            opening=opening,
            closing=() if eos is None else (eos,),
            vocab_size=self.processor.vocab_size(),
            fingerprint=digest.hexdigest()[:16],
            unknown=self.processor.unk_id(),
        )

    def _named(self, role: str, own: int) -> int | None:
        """Return a token's id; SentencePiece's own -1 means that there is none."""
        name = self.settings.get(role, own)
        if isinstance(name, Mapping):
            name = name.get("content")
        if isinstance(name, str):
            number = self.processor.piece_to_id(name)
            if self.processor.id_to_piece(number) != name:
                raise DataError(
                    f"the {role} {name!r} that '{self.path.parent}' names is not in its "
                    f"{self.path.name}: correct it in tokenizer_config.json"
                )
            return int(number)
        return name if isinstance(name, int) and name >= 0 else None

    @property
    def template(self) -> str:
        """Empty: a `.model` file holds none."""
        return ""

    @property
    def marks(self) -> None:
        """None, as there is no template."""
        return None

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens."""
        ids: list[int] = self.processor.encode(text)
        return ids

    def encode_batch(self, texts: Sequence[str], cuts: Sequence[Sequence[int]]) -> list[Encoded]:
        """Return ids, and how many stand before each cut.

        The leading bytes of a character that is spelt out in bytes have an empty span before it.
        """
        if not any(cuts):
            found = self.processor.encode(list(texts), num_threads=1)
            return [(ids, []) for ids in found]
        spans = self.processor.encode(list(texts), return_type="offset_mapping", num_threads=1)
        return [
            (item["ids"], [_count(item["offsets"], cut) for cut in where])
            for item, where in zip(spans, cuts, strict=True)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; control tokens have none."""
        text: str = self.processor.decode([int(number) for number in ids])
        return text

    def spelling(self, ids: Sequence[int]) -> str:
        """Return the pieces, one after another."""
        return "".join(self.processor.id_to_piece(int(number)) for number in ids)

    def ends_turn(self, text: str) -> str | None:
        """Return None: no text becomes a control token."""
        return None

    def show(self, ids: Sequence[int]) -> str:
        """Return the text of ids, control tokens included."""
        runs = groupby((int(number) for number in ids), self.processor.is_control)
        return "".join(
            "".join(map(self.processor.id_to_piece, run)) if control else self.decode(list(run))
            for control, run in runs
        )

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        carrying: Collection[int] | None = None,
    ) -> tuple[Segment, ...] | None:
        """Return None: there is no template."""
        return None

    def save(self, folder: Path) -> None:
        """Write tokenizer.model, and for `AutoTokenizer` tokenizer.json and tokenizer_config.json.

        The ids are the same but for models that give the same score to several merges, as
        Mistral's does for runs of more than 14 spaces: tokenizers can only order merges strictly.
        """
        target = folder / "tokenizer.model"
        if self.path.resolve() != target.resolve():
            shutil.copyfile(self.path, target)
        names = {"unk_token": self._piece(self.processor.unk_id())}
        names |= {"bos_token": self._piece(self.info.bos), "eos_token": self._piece(self.info.eos)}
        settings: dict[str, object] = {key: name for key, name in names.items() if name is not None}
        settings |= {
            "add_bos_token": bool(self.info.opening),
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
        converted = self._convert()
        if converted is not None:
            (folder / "tokenizer.json").write_text(converted, encoding="utf-8")

    def _piece(self, number: int | None) -> str | None:
        return None if number is None or number < 0 else str(self.processor.id_to_piece(number))

    def _convert(self) -> str | None:
        """Return tokenizer.json's text; None for what `tokenizers` has no equal of (unigram, …)."""
        from sentencepiece import sentencepiece_model_pb2 as schema
        from tokenizers import (
            AddedToken,
            Tokenizer,
            decoders,
            models,
            normalizers,
            processors,
        )

        proto = cast(Any, schema).ModelProto.FromString(self.processor.serialized_model_proto())
        form, trainer = proto.normalizer_spec, proto.trainer_spec
        plain = not (form.precompiled_charsmap or form.remove_extra_whitespaces)
        if not (trainer.model_type == trainer.BPE and plain and form.escape_whitespaces):
            return None
        vocab = {piece.piece: number for number, piece in enumerate(proto.pieces)}
        unknown = self._piece(self.processor.unk_id())
        result = Tokenizer(
            models.BPE(
                vocab,
                _merges(proto.pieces, vocab),
                unk_token=unknown,
                fuse_unk=True,
                byte_fallback=bool(trainer.byte_fallback),
            )
        )
        lead = [normalizers.Prepend(SPACE)] if form.add_dummy_prefix else []
        result.normalizer = normalizers.Sequence([*lead, normalizers.Replace(" ", SPACE)])
        strip = [decoders.Strip(" ", 1, 0)] if form.add_dummy_prefix else []
        result.decoder = decoders.Sequence(
            [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        kinds = [(piece.piece, piece.type) for piece in proto.pieces]
        result.add_special_tokens([name for name, kind in kinds if kind in (2, 3)])
        result.add_tokens([AddedToken(name, normalized=False) for name, kind in kinds if kind == 4])
        bos = self._piece(self.info.bos)
        if self.info.opening:
            result.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A",
                pair=f"{bos} $A {bos} $B",
                special_tokens=[(bos, self.info.bos)],
            )
        return str(result.to_str(pretty=False))


def _merges(pieces: Sequence[Any], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the pairs that make a piece, best score first, as SentencePiece would merge them."""
    found = [
        (-piece.score, vocab[left], vocab[right], left, right)
        for piece in pieces
        if piece.type == 1
        for left, right in ((piece.piece[:k], piece.piece[k:]) for k in range(1, len(piece.piece)))
        if left in vocab and right in vocab
    ]
    return [(left, right) for *_, left, right in sorted(found)]


def _count(spans: Sequence[tuple[int, int]], cut: int) -> int:
    """Return how many tokens lie before a character, by the last character of each."""
    return bisect_left(spans, cut, key=lambda span: max(span[0], span[1] - 1))
