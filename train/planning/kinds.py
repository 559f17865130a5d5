"""What kind of model a config.json describes: what is refused by name, what is only nearly known.

A `Shape` is made of sizes. Models that are not made of attention and an MLP in equal layers have
sizes, too, and would be taken for what they are not.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from train.errors import ModelError

TEXT_PARTS = ("text_config", "llm_config", "language_config")
# What a text part inside of another config leaves out, where it is as transformers 5.23 has it.
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
          "num_attention_heads", "num_key_value_heads")  # fmt: skip
_LEFT_OUT: dict[str, dict[str, Any]] = {
    "llama": dict(zip(_SIZES, (32000, 4096, 11008, 32, 32, None), strict=True)),
    "mistral": dict(zip(_SIZES, (32000, 4096, 14336, 32, 32, 8), strict=True)),
    "gemma": dict(zip(_SIZES, (256000, 3072, 24576, 28, 16, 16), strict=True)) | {"head_dim": 256},
    "gemma3_text": dict(zip(_SIZES, (262208, 2304, 9216, 26, 8, 4), strict=True))
    | {"head_dim": 256, "sliding_window": 4096},
}
# Config keys, and kinds of layers, of what is neither attention over all tokens nor a plain MLP.
_STRANGE = re.compile(
    r"mamba|^ssm_|state_size$|^rwkv|^lru_|conv_L_cache|^linear_(num|key|value|conv)|kv_lora_rank"
    r"|^cross_attention_layers$|per_layer_input|^block_configs$|full_attention_interval"
)
_LAYERS = ("attention", "full_attention", "sliding_attention", "chunked_attention")
_ENCODERS = re.compile(r"bert(?!-generation|.*decoder)|electra|^(esm|mpnet|funnel|longformer|t5)")
# Counted to the last element against transformers 5.23; others are taken to be like Llama.
_LIKE_LLAMA = (
    "llama", "mistral", "ministral3", "smollm3", "granite", "internlm3", "ernie4_5", "cwm",
    "vaultgemma", "iquestcoder", "exaone",
)  # fmt: skip


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a config.json that describes the language model, nothing left out."""
    parts = (config.get(name) for name in TEXT_PARTS)
    part: dict[str, Any] | None = next((each for each in parts if isinstance(each, dict)), None)
    if part is None:
        return config
    return _LEFT_OUT.get(str(part.get("model_type")), {}) | part


def refuse_encoder(config: Mapping[str, Any], kind: str) -> None:
    """Refuse what reads a text from both sides, and cannot be trained to continue one.

    Raises:
        ModelError: the kind is named.
    """
    masked = any("ForMaskedLM" in str(name) for name in config.get("architectures") or ())
    encodes = not config.get("is_decoder") and (masked or _ENCODERS.search(kind))
    if encodes or config.get("is_encoder_decoder"):
        raise ModelError(
            f"'{kind}' has an encoder, which is not supported: choose a model that continues a "
            "text, such as a Llama, Mistral or Qwen"
        )


def refuse_strange(config: Mapping[str, Any]) -> None:
    """Refuse what sizes alone do not describe.

    Raises:
        ModelError: the kind and what is strange about it are named.
    """
    part = text_part(config)
    kinds = [str(word) for word in part.get("layer_types") or part.get("layers_block_type") or ()]
    found = [key for key, value in part.items() if _STRANGE.search(key) and value]
    found += [word for word in dict.fromkeys(kinds) if word not in _LAYERS]
    found += ["intermediate_size"] if isinstance(part.get("intermediate_size"), list) else []
    if found:
        raise ModelError(
            f"'{part.get('model_type', 'model')}' is not made of equal layers of attention and an "
            f"MLP (its config.json has {found[0]!r}), so it cannot be planned: choose another model"
        )


def remarks(config: Mapping[str, Any], known: Collection[str]) -> Iterator[str]:
    """Say what a plan from a config.json takes for granted.

    Args:
        known: kinds whose differences from Llama are known.
    """
    part = text_part(config)
    kind, whole = str(part.get("model_type", "llama")), str(config.get("model_type", "llama"))
    pictured = any(isinstance(config.get(name), dict) for name in ("vision_config", "audio_config"))
    if part is not config or pictured:
        yield f"only the text part of '{whole}' is planned, as only that would be trained"
    if kind not in known and kind not in _LIKE_LLAMA:
        yield (
            f"the planner does not know the kind '{kind}': it is planned as a Llama of its sizes, "
            "and a run will correct that by the model's files"
        )
