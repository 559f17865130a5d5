"""One of `bench/peers.py`'s ways: LitGPT's model, loss, collator and full fine-tuning step.

LitGPT's own command tokenizes and shuffles for itself; so that the samples are the same, its loop
(`litgpt.finetune.full.fit`) is followed here call by call, from its model with the same weights on.
"""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config
from litgpt.data.base import get_sft_collate_fn
from litgpt.model import GPT
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
from litgpt.utils import chunked_cross_entropy, instantiate_torch_optimizer
from safetensors.torch import load_file

from bench.rig import settle

Samples = list[dict[str, list[int]]]


def train(
    given: Namespace, folder: Path, samples: Samples, lr: float
) -> tuple[list[float], list[float]]:
    """Train on the samples in order; return when each step ended, and its loss."""
    model = load(folder, given.precision).train()
    model.max_seq_length = given.block
    optimizer = instantiate_torch_optimizer("AdamW", model.parameters(), lr=lr, weight_decay=0.0)
    collate = get_sft_collate_fn(max_seq_length=given.block, pad_id=0, ignore_index=-100)
    ends, losses = [], []
    for first in range(0, len(samples), given.batch):
        batch = samples[first : first + given.batch]
        parts = [batch[i : i + given.micro] for i in range(0, len(batch), given.micro)]
        total = 0.0
        for part in parts:
            ready = collate([tensors(sample) for sample in part])
            logits = model(ready["input_ids"])
            loss = chunked_cross_entropy(logits[..., :-1, :], ready["labels"][..., 1:])
            (loss / len(parts)).backward()
            total += loss.item() / len(parts)
        optimizer.step()
        optimizer.zero_grad()
        settle()
        ends.append(time.time())
        losses.append(total)
    return ends, losses


def load(folder: Path, precision: str) -> GPT:
    """Return LitGPT's model of the Mistral in a Hugging Face folder."""
    shape = json.loads((folder / "config.json").read_text())
    config = Config(
        name="Mistral", block_size=shape["max_position_embeddings"],
        padded_vocab_size=shape["vocab_size"], n_layer=shape["num_hidden_layers"],
        n_head=shape["num_attention_heads"], n_embd=shape["hidden_size"],
        n_query_groups=shape["num_key_value_heads"], rotary_percentage=1.0,
        parallel_residual=False, bias=False, norm_class_name="RMSNorm",
        norm_eps=shape["rms_norm_eps"], mlp_class_name="LLaMAMLP",
        intermediate_size=shape["intermediate_size"],
        rope_base=int(shape["rope_parameters"]["rope_theta"]),
    )  # fmt: skip
    weights: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        weights |= load_file(path)
    state: dict[str, torch.Tensor] = {}
    qkv: Any = defaultdict(dict)
    copy_weights_hf_llama(config, qkv, state, weights)
    model = GPT(config)
    model.load_state_dict(state)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return model.to("cuda" if torch.cuda.is_available() else "cpu", dtype)


def tensors(sample: dict[str, list[int]]) -> dict[str, Any]:
    """Return a sample as LitGPT's datasets do."""
    counts = {"raw": len(sample["input_ids"]), "raw_plus_prompt_template": len(sample["input_ids"])}
    return {
        "input_ids": torch.tensor(sample["input_ids"]),
        "labels": torch.tensor(sample["labels"]),
        "token_counts": counts,
    }
