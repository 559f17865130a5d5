"""Shapes that are known by name, from the config.json of each model's Hugging Face repository."""

from __future__ import annotations

from typing import Any

from train.errors import PlanError, did_you_mean
from train.planning.shape import Shape

_MPT: dict[str, Any] = {"gated": False, "tied": True, "norm": "layer", "activation": "gelu"}
_GEMMA_1: dict[str, Any] = {"tied": True, "norm": "gemma", "activation": "gelu"}
_GEMMA_2: dict[str, Any] = {**_GEMMA_1, "norms": 4, "post_norms": 2, "softcap": True}

_BUILT_IN = {
    "mistral-7b": Shape("mistral-7b", 32, 4096, 32, 8, 128, 14336, 32768),
    "mistral-7b-v0.1": Shape("mistral-7b-v0.1", 32, 4096, 32, 8, 128, 14336, 32000, window=4096),
    "llama-2-7b": Shape("llama-2-7b", 32, 4096, 32, 32, 128, 11008, 32000),
    "llama-2-13b": Shape("llama-2-13b", 40, 5120, 40, 40, 128, 13824, 32000),
    "llama-2-70b": Shape("llama-2-70b", 80, 8192, 64, 8, 128, 28672, 32000),
    "llama-3-8b": Shape("llama-3-8b", 32, 4096, 32, 8, 128, 14336, 128256),
    "llama-3-70b": Shape("llama-3-70b", 80, 8192, 64, 8, 128, 28672, 128256),
    "llama-3-405b": Shape("llama-3-405b", 126, 16384, 128, 8, 128, 53248, 128256),
    "llama-3.2-1b": Shape("llama-3.2-1b", 16, 2048, 32, 8, 64, 8192, 128256, tied=True),
    "llama-3.2-3b": Shape("llama-3.2-3b", 28, 3072, 24, 8, 128, 8192, 128256, tied=True),
    "qwen2.5-0.5b": Shape(
        "qwen2.5-0.5b", 24, 896, 14, 2, 64, 4864, 151936, tied=True, bias_qkv=True
    ),
    "qwen2.5-7b": Shape("qwen2.5-7b", 28, 3584, 28, 4, 128, 18944, 152064, bias_qkv=True),
    "qwen2.5-14b": Shape("qwen2.5-14b", 48, 5120, 40, 8, 128, 13824, 152064, bias_qkv=True),
    "qwen2.5-32b": Shape("qwen2.5-32b", 64, 5120, 40, 8, 128, 27648, 152064, bias_qkv=True),
    "qwen2.5-72b": Shape("qwen2.5-72b", 80, 8192, 64, 8, 128, 29568, 152064, bias_qkv=True),
    "qwen3-8b": Shape("qwen3-8b", 36, 4096, 32, 8, 128, 12288, 151936, qk_norm=256),
    "gemma-7b": Shape("gemma-7b", 28, 3072, 16, 16, 256, 24576, 256000, **_GEMMA_1),
    "gemma-2-9b": Shape("gemma-2-9b", 42, 3584, 16, 8, 256, 14336, 256000, **_GEMMA_2),
    "phi-3-mini": Shape("phi-3-mini", 32, 3072, 32, 32, 96, 8192, 32064),
    "phi-4": Shape("phi-4", 40, 5120, 40, 10, 128, 17920, 100352),
    "gpt-neox-20b": Shape(
        "gpt-neox-20b", 44, 6144, 64, 64, 96, 24576, 50432, gated=False, norm_bias=True,
        bias_qkv=True, bias_out=True, bias_mlp=True, norm="layer", activation="gelu",
        fused_qkv=True, partial_rotary=True, parallel=True,
    ),
    "mpt-7b": Shape("mpt-7b", 32, 4096, 32, 32, 128, 16384, 50432, **_MPT),
    "mpt-30b": Shape("mpt-30b", 48, 7168, 64, 64, 112, 28672, 50432, **_MPT),
}  # fmt: skip

# Where the weights of each are on the hub.
_HUB = {
    "mistral-7b": "mistralai/Mistral-7B-v0.3",
    "mistral-7b-v0.1": "mistralai/Mistral-7B-v0.1",
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "llama-2-13b": "meta-llama/Llama-2-13b-hf",
    "llama-2-70b": "meta-llama/Llama-2-70b-hf",
    "llama-3-8b": "meta-llama/Meta-Llama-3-8B",
    "llama-3-70b": "meta-llama/Meta-Llama-3-70B",
    "llama-3-405b": "meta-llama/Llama-3.1-405B",
    "llama-3.2-1b": "meta-llama/Llama-3.2-1B",
    "llama-3.2-3b": "meta-llama/Llama-3.2-3B",
    "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B",
    "qwen2.5-14b": "Qwen/Qwen2.5-14B",
    "qwen2.5-32b": "Qwen/Qwen2.5-32B",
    "qwen2.5-72b": "Qwen/Qwen2.5-72B",
    "qwen3-8b": "Qwen/Qwen3-8B",
    "gemma-7b": "google/gemma-7b",
    "gemma-2-9b": "google/gemma-2-9b",
    "phi-3-mini": "microsoft/Phi-3-mini-4k-instruct",
    "phi-4": "microsoft/phi-4",
    "gpt-neox-20b": "EleutherAI/gpt-neox-20b",
    "mpt-7b": "mosaicml/mpt-7b",
    "mpt-30b": "mosaicml/mpt-30b",
}
_OF_HUB = {hub.lower(): name for name, hub in _HUB.items()}


def hub_name(name: str) -> str | None:
    """Return where the weights of a built-in model are on the hub; None for any other name."""
    return _HUB.get(name.lower())


def is_built_in(name: str) -> bool:
    """Whether `built_in` knows a name."""
    return name.lower() in _BUILT_IN or name.lower() in _OF_HUB


def built_in(name: str) -> Shape:
    """Return a shape by its built-in name, or by where its weights are on the hub.

    Raises:
        PlanError: an unknown name.
    """
    shape = _BUILT_IN.get(_OF_HUB.get(name.lower(), name.lower()))
    if shape is None:
        hint = did_you_mean(name.lower(), _BUILT_IN) or f"; known are {', '.join(_BUILT_IN)}"
        raise PlanError(f"there is no built-in model '{name}'{hint}")
    return shape


def built_in_names() -> tuple[str, ...]:
    """The names that `built_in` knows."""
    return tuple(_BUILT_IN)
