"""Reading a `Shape` from a Hugging Face config.json, by the family of models that it is of.

What a family adds to the Llama layout (biases, norms, learned positions) is in its modelling code
only, not in its config; `_TRAITS` holds those facts, from transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from train.errors import ModelError
from train.planning import kinds
from train.planning.shape import Shape

_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "vocab": ("vocab_size",),
}
_LAYER_NORM: dict[str, Any] = {"norm_bias": True, "norm": "layer"}
_ALL_BIASES = {"bias_qkv": True, "bias_out": True, "bias_mlp": True}
_PLAIN: dict[str, Any] = {"gated": False, **_LAYER_NORM, **_ALL_BIASES}
_GEMMA: dict[str, Any] = {"norm": "gemma", "tied": True}
_TRAITS: dict[str, dict[str, Any]] = {
    "qwen2": {"bias_qkv": True},
    "gemma": _GEMMA,
    "gemma2": {**_GEMMA, "norms": 4, "post_norms": 2},
    "gemma3_text": {**_GEMMA, "norms": 4, "post_norms": 2},
    "phi3": {"fused_qkv": True, "partial_rotary": True},
    "gpt_neox": {**_PLAIN, "fused_qkv": True, "partial_rotary": True, "parallel": True},
    "gpt2": {**_PLAIN, "tied": True},
    "gptj": {"gated": False, **_LAYER_NORM, "bias_mlp": True, "norms": 1, "bias_head": True,
             "partial_rotary": True, "parallel": True},
    "opt": {**_PLAIN, "tied": True},
    "bloom": {**_PLAIN, "tied": True, "outer_norms": 2},
    "mpt": {"gated": False, "tied": True, "norm": "layer"},
    "phi": {**_PLAIN, "norms": 1, "bias_head": True, "partial_rotary": True, "parallel": True},
    "falcon": {"gated": False, **_LAYER_NORM, "norms": 1, "tied": True, "parallel": True,
               "fused_qkv": True},
    "starcoder2": {**_PLAIN, "tied": True},
    "stablelm": {**_LAYER_NORM, "partial_rotary": True},
    "olmo": {"norm_weight": False, "norm": "layer32"},
    "olmo2": {"norm": "olmo2", "post_norms": 2},
    "exaone4": {"norm": "rms", "post_norms": 2},
    "cohere": {"norms": 1, "tied": True, "norm": "layer32", "parallel": True},
}  # fmt: skip
_TRAITS |= {
    "arcee": {"gated": False, "activation": "relu"},
    "cohere2": _TRAITS["cohere"],
    "olmo3": _TRAITS["olmo2"],
    "qwen2_vl": _TRAITS["qwen2"], "qwen2_5_vl": _TRAITS["qwen2"],
    "qwen2_vl_text": _TRAITS["qwen2"], "qwen2_5_vl_text": _TRAITS["qwen2"],
}  # fmt: skip
_QK_NORM = ("qwen3", "qwen3_vl_text", "gemma3_text", "exaone4")
_BIAS_SWITCHES = {
    "attention_bias": ("bias_qkv", "bias_out"),
    "mlp_bias": ("bias_mlp",),
    "use_qkv_bias": ("bias_qkv",),
    "use_bias": ("bias_qkv", "bias_out", "bias_mlp"),
}


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Return the shape that a Hugging Face config.json describes.

    Raises:
        ModelError: a size is missing or is none, or the model has an encoder or is a mixture of
            experts.
    """
    try:
        return _shape_of(config)
    except (TypeError, ValueError, AttributeError, KeyError, ArithmeticError) as error:
        raise ModelError(
            f"a value in the model's config.json is of a wrong kind ({error}): mend or replace it"
        ) from None


def _shape_of(config: Mapping[str, Any]) -> Shape:
    kinds.refuse_encoder(config, str(config.get("model_type", "llama")))
    config = kinds.text_part(config)
    kind = str(config.get("model_type", "llama"))
    if _experts(config):
        raise ModelError(
            f"'{kind}' is a mixture of experts, which is not supported: choose a dense model"
        )
    size = {noun: _size(config, names, kind) for noun, names in _NAMES.items()}
    traits = dict(_TRAITS.get(kind, {}))
    for key, names in _BIAS_SWITCHES.items():
        if isinstance(config.get(key), bool):
            traits |= dict.fromkeys(names, config[key])
    if kind in _ADJUST:
        traits |= _ADJUST[kind](config)
    traits.setdefault("activation", _activation(config, kind))
    tied = config.get("tie_word_embeddings")
    head_dim = config.get("head_dim") or size["hidden"] // size["heads"]
    if kind in _QK_NORM:
        traits["qk_norm"] = 2 * head_dim
    traits.setdefault("ffn", _ffn(config, size["hidden"], kind))
    traits.setdefault("kv_heads", config.get("num_key_value_heads") or size["heads"])
    traits["tied"] = traits.get("tied", False) if tied is None else bool(tied)
    window, full = _window(config, kind, size["layers"])
    traits.setdefault("window", window)
    traits.setdefault("full_layers", full)
    traits["softcap"] = bool(config.get("attn_logit_softcapping"))
    name = str(config.get("_name_or_path") or kind)
    fields: dict[str, Any] = {"name": name, "head_dim": int(head_dim)} | size | traits
    return require_grouped(Shape(**fields), size["heads"])


def _experts(config: Mapping[str, Any]) -> bool:
    """Whether any part of a config gives a number of experts, under whatever key."""
    found = {key: value for key, value in config.items() if "expert" in str(key)}
    if 0 in (found.get("num_local_experts"), found.get("num_experts")):
        return False  # a dense member of such a family
    lists = [value if isinstance(value, list) else [value] for value in found.values()]
    parts = [part for part in config.values() if isinstance(part, dict)]
    several = any(isinstance(n, int) and n > 1 for one in lists for n in one)
    return several or any(map(_experts, parts))


def _size(config: Mapping[str, Any], names: tuple[str, ...], kind: str) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    raise ModelError(
        f"the config of '{kind}' has no {names[0]}: it is not a causal language model's"
    )


# Every which layer attends to all of a sample, where a config of that type does not say it.
_PATTERNS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6}


def _ffn(config: Mapping[str, Any], hidden: int, kind: str) -> int:
    for name in ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"):
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    ratio = config.get("expansion_ratio") or 4
    return int(hidden * ratio)


def _activation(config: Mapping[str, Any], kind: str) -> str:
    names = ("hidden_activation", "hidden_act", "activation_function")
    word = next((str(config[name]) for name in names if config.get(name)), "silu")
    if kind in ("gpt2", "phi", "gptj", "bloom") or word == "gelu_new":
        return "gelu_new"
    if kind in ("falcon", "mpt"):
        return "gelu"
    return "relu" if "relu" in word else "gelu" if "gelu" in word else "silu"


def _window(config: Mapping[str, Any], kind: str, layers: int) -> tuple[int | None, int]:
    """Return the reach of sliding attention, and how many layers do without it."""
    window = config.get("sliding_window")
    if config.get("use_sliding_window") is False or not isinstance(window, int) or window < 1:
        return None, 0
    kinds = config.get("layer_types")
    pattern = config.get("sliding_window_pattern") or _PATTERNS.get(kind)
    full = layers // pattern if isinstance(pattern, int) else 0
    if kinds:
        full = sum(word != "sliding_attention" for word in kinds)
    return (window, full) if full < layers else (None, 0)


def _falcon(config: Mapping[str, Any]) -> dict[str, Any]:
    grouped = bool(config.get("new_decoder_architecture"))
    bias = bool(config.get("bias"))
    kv_heads = (
        config.get("num_kv_heads") if grouped else 1 if config.get("multi_query", True) else None
    )
    norms = 2 if grouped and config.get("num_ln_in_parallel_attn") != 1 else 1
    norms = norms if grouped or config.get("parallel_attn", True) else 2
    found = {"bias_qkv": bias, "bias_out": bias, "bias_mlp": bias, "norms": norms}
    return found | ({"kv_heads": kv_heads} if kv_heads else {})


def _stablelm(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "bias_qkv": bool(config.get("use_qkv_bias")),
        "norms": 1 if config.get("use_parallel_residual") else 2,
    }


_ADJUST: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "falcon": _falcon,
    "stablelm": _stablelm,
    "gpt2": lambda config: {"positions": config.get("n_positions", 1024)},
    # OPT's table has two rows before the first position.
    "opt": lambda config: {"positions": config.get("max_position_embeddings", 2048) + 2},
    "gpt_neox": lambda config: dict.fromkeys(
        ("bias_qkv", "bias_out"), bool(config.get("attention_bias", True))
    ),
    "cohere": lambda config: {"qk_norm": _wide_norm(config) if config.get("use_qk_norm") else 0},
    **dict.fromkeys(("olmo2", "olmo3"), lambda config: {"qk_norm": _wide_norm(config)}),
    "glm": lambda config: {"bias_out": False},
    "seed_oss": lambda config: {"bias_out": bool(config.get("attention_out_bias"))},
}
# The kinds of which more is known than their sizes.
SPECIAL = frozenset((*_TRAITS, *_ADJUST, *_QK_NORM))


def _wide_norm(config: Mapping[str, Any]) -> int:
    """Return the elements of norms as wide as all query heads and all key heads."""
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    return int(config["hidden_size"] // heads * (heads + kv_heads))


def require_grouped(shape: Shape, heads: int) -> Shape:
    """Return a shape whose heads share its key-value heads evenly.

    Raises:
        ModelError: they do not.
    """
    if heads % shape.kv_heads:
        raise ModelError(
            f"{heads} heads cannot share {shape.kv_heads} key-value heads: "
            "one must divide the other"
        )
    return shape
