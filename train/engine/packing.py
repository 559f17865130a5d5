"""Whether samples may lie side by side in one row of a model: tried on a small model of its kind.

Not every model hands the samples' boundaries on to its attention, and some ask more of it than the
packed attention heeds. So a copy of the configuration with two narrow layers and random weights is
run on the CPU: two samples in one row must give what each gives alone with the model's own
attention. It takes a fraction of a second and leaves the random state as it is.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from train.data.batch import collate
from train.engine import attention
from train.engine.inputs import packed_inputs

LENGTHS = (5, 9)  # tokens of the two samples; the second is longer than WINDOW
WINDOW = 4  # tokens: the reach of sliding and chunked attention in the small model
VOCABULARY, FFN = 64, 64
TOLERANCE = 1e-3  # of the logits' spread; fp32 rounds to about 1e-6 of it


def can_pack(config: PreTrainedConfig) -> bool:
    """Whether every layer's attention goes through transformers' interface, as it should."""
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None or not kind.is_backend_compatible():
        return False
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        try:
            return _apart(small_model(config))
        except Exception:  # a model that does not take the boundaries, or that cannot be made small
            return False


def small_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a copy with a layer of each kind, at least two, and as few heads as can be."""
    small = copy.deepcopy(config)
    layers = int(config.num_hidden_layers)
    kinds = list(getattr(config, "layer_types", None) or [])
    kept = sorted({kinds.index(kind) for kind in kinds})
    kept = (kept + [k for k in range(layers) if k not in kept])[: max(2, len(kept))]
    heads = int(config.num_attention_heads)
    shared = math.gcd(heads, int(getattr(config, "num_key_value_heads", None) or heads))
    shared = math.gcd(shared, int(config.hidden_size))
    shared //= 2 - shared % 2  # two key heads, where that many are left
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == layers:
            setattr(small, name, [value[k] for k in kept])
        elif name in ("sliding_window", "attention_chunk_size") and value:
            setattr(small, name, WINDOW)
        elif name.startswith("vocab_size"):
            setattr(small, name, VOCABULARY)
        elif name.endswith("token_id"):
            setattr(small, name, 0)
    small.num_hidden_layers = len(kept)
    small.vocab_size = VOCABULARY
    for name in ("hidden_size", "num_attention_heads", "num_key_value_heads"):
        if getattr(config, name, None):
            setattr(small, name, getattr(config, name) // shared)
    if getattr(config, "intermediate_size", None):
        small.intermediate_size = FFN
    return small


def small_model(config: PreTrainedConfig) -> Any:
    """Return a small model with random weights on the CPU, in fp32, none of them 0."""
    model: Any = AutoModelForCausalLM.from_config(
        small_config(config), attn_implementation="eager", dtype=torch.float32
    )
    for parameter in model.parameters():  # none may stay 0, or what it does would not be seen
        parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


class _Drawn:
    """Samples of random tokens."""

    def sample(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        draw = np.random.default_rng(number)
        ids = draw.integers(1, VOCABULARY, LENGTHS[number]).astype(np.int32)
        return ids, np.ones(len(ids), np.bool_)


def _apart(model: Any) -> bool:
    whole = [torch.from_numpy(_Drawn().sample(number)[0]).long() for number in range(len(LENGTHS))]
    alone = [model(ids[None], use_cache=False).logits for ids in whole]
    wanted = torch.cat(alone, dim=1)
    model.set_attn_implementation(attention.register())
    inputs = packed_inputs(collate(_Drawn(), range(len(LENGTHS))), torch.device("cpu"))
    found = model(**inputs.arguments, use_cache=False).logits
    spread = float(wanted.std())
    return spread > 0 and float((found - wanted).abs().max()) < TOLERANCE * spread
