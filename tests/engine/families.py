"""Small models of the families that tensor ranks divide, with random weights and ragged sizes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

COMMON: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 12,
    "num_key_value_heads": 3, "vocab_size": 2051, "max_position_embeddings": 1024, "head_dim": 8,
    "pad_token_id": 3,
}  # fmt: skip
# What makes each family different: fewer key heads than ranks, biases on either side, norms of
# queries and keys, fused products, caps, windows in some layers.
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 64, "num_key_value_heads": 12},
    "llama": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 6},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"num_key_value_heads": 6},
    "gemma": {"num_key_value_heads": 1},
    "gemma2": {"sliding_window": 64, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 64, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2},
    "phi3": {"num_key_value_heads": 12, "hidden_size": 96},
    "starcoder2": {"use_bias": True, "hidden_act": "gelu_pytorch_tanh", "sliding_window": None},
}


def family(kind: str, folder: Path, tokenizer: Path) -> Path:
    """Make a folder with a model of this kind, whose biases and norms are not 0 and 1."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**{**COMMON, **FAMILIES[kind]})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    for path in tokenizer.iterdir():
        if "token" in path.name:
            shutil.copy(path, folder)
    return folder
