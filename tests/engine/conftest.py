"""Small models and real, ragged data for tests that train."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.data.preset import build_preset


@pytest.fixture(scope="session")
def preset(tmp_path_factory: pytest.TempPathFactory):
    """The embedded preset: functions of the standard library and a tokeniser trained on them."""
    return build_preset(tmp_path_factory.mktemp("preset"))


@pytest.fixture(scope="session")
def ragged(preset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred rows of the preset's data."""
    path = tmp_path_factory.mktemp("ragged") / "functions.jsonl"
    path.write_text("".join(preset.dataset.read_text().splitlines(keepends=True)[:420]))
    return path


@pytest.fixture(scope="session")
def tiny(preset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Mistral with random weights, grouped heads and a window shorter than samples."""
    import shutil

    import torch
    from transformers import MistralConfig, MistralForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = MistralConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=2048, sliding_window=64, max_position_embeddings=1024,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(folder)
    for path in preset.model.iterdir():
        if "token" in path.name:
            shutil.copy(path, folder)
    return folder
