"""Which models may be packed is tried, not known by name."""

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from train.engine import packing

SIZE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
PACKED = ("mistral", "llama", "qwen2", "qwen3", "gemma2", "phi", "phi3", "gpt_neox", "cohere2",
          "olmo2", "starcoder2", "smollm3", "gpt2", "opt")  # fmt: skip
# Boundaries that are not handed on; sinks; a state or a convolution that runs over the row; a mask
# that depends on the values; no attention interface.
PADDED = ("nemotron", "gpt_oss", "qwen3_5_text", "doge", "bloom")


@pytest.mark.parametrize("family", PACKED)
def test_models_that_keep_samples_apart_are_packed(family):
    assert packing.can_pack(CONFIG_MAPPING[family](**SIZE))


@pytest.mark.parametrize("family", PADDED)
def test_models_that_do_not_are_padded(family):
    assert not packing.can_pack(CONFIG_MAPPING[family](**SIZE))


def test_the_trial_draws_from_nobodys_random_numbers_and_stays_small():
    config = transformers.LlamaConfig(
        hidden_size=8192, num_attention_heads=64, num_key_value_heads=8, num_hidden_layers=80,
        intermediate_size=28672, vocab_size=128256,
    )  # fmt: skip
    before, given = torch.random.get_rng_state(), config.to_dict()
    assert packing.can_pack(config)
    assert torch.equal(torch.random.get_rng_state(), before) and config.to_dict() == given
    small = packing.small_config(config)
    assert (small.hidden_size, small.num_hidden_layers, small.vocab_size) == (2048, 2, 64)


def test_an_attention_that_swallows_what_it_is_given_is_noticed(monkeypatch):
    whole = packing.attention.packed_attention

    def forgetful(*tensors, sliding_window=None, **options):
        return whole(*tensors, **options)

    config = transformers.MistralConfig(**SIZE, sliding_window=16)
    assert packing.can_pack(config)
    monkeypatch.setattr(packing.attention, "packed_attention", forgetful)
    assert not packing.can_pack(config)
