"""What a folder holds besides its model, or other than its config.json says: told or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from train.config import ModelConfig
from train.engine import model as models
from train.errors import ModelError

SIZE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 128, "max_position_embeddings": 256, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SIZE)).save_pretrained(tmp_path)
    return tmp_path


def change(folder: Path, name: str, value: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    save_file({**load_file(path), name: value}, path, metadata={"format": "pt"})


def load(folder: Path) -> models.LoadedModel:
    zero = {"zero_optimization": {"stage": 0}}
    return models.load(
        folder, ModelConfig(str(folder), None, "fp32", None, False), zero, torch.device("cpu"), 0
    )


@pytest.mark.parametrize("name", ["score.weight", "mtp.fc.weight", "v_head.summary.weight"])
def test_weights_that_the_model_does_not_use_are_told(folder, name):
    change(folder, name, torch.ones(2, 32))
    assert load(folder).notices[-1].endswith(f"are not trained, and not saved: {name}")


def test_buffers_that_old_files_hold_are_not_told(folder):
    computed = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change(folder, computed, torch.ones(4))
    assert not any("not saved" in said for said in load(folder).notices)


def test_more_layers_than_the_config_has_are_refused_and_not_left_out(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(ModelError, match=r"layers.1.*', a layer beyond those of its config.json"):
        load(folder)
    path.write_text(json.dumps(config | {"num_hidden_layers": 1, "num_nextn_predict_layers": 1}))
    assert "and 5 more" in load(folder).notices[-1]


@pytest.mark.parametrize("before", ["module.", "_orig_mod.", "base_model.model."])
def test_names_that_another_trainer_has_put_a_word_before_are_shown(folder, before):
    path = folder / "model.safetensors"
    save_file({before + key: held for key, held in load_file(path).items()}, path)
    with pytest.raises(ModelError, match=f"it holds '{before}model.embed_tokens.weight': save it"):
        load(folder)


def test_code_that_a_model_brings_is_not_run_and_said(folder):
    path = folder / "config.json"
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    with pytest.raises(ModelError, match="brings code of its own.*give --trust-remote-code"):
        load(folder)


def test_a_model_without_a_number_of_positions_is_loaded(tmp_path):
    config = transformers.RecurrentGemmaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=1, lru_width=32, attention_window_size=16, vocab_size=128,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert not load(tmp_path).packed
