"""What a model's folder holds, by its files' headers: refused in a sentence before it is loaded."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from train.config import parse_args
from train.data.model_files import require_trainable, rounded, stored_tensors
from train.data.model_folder import locate_model, read_model_config
from train.errors import ModelError
from train.planning import shape_of
from train.run.inputs import locate

CONFIG = {
    "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "vocab_size": 32, "max_position_embeddings": 64,
}  # fmt: skip
WEIGHTS = {
    "model.embed_tokens.weight": (32, 8), "lm_head.weight": (32, 8), "model.norm.weight": (8,),
    **{f"model.layers.0.self_attn.{n}_proj.weight": (8, 8) for n in "qkvo"},
    **{f"model.layers.0.mlp.{n}_proj.weight": (16, 8) for n in ("gate", "up")},
    "model.layers.0.mlp.down_proj.weight": (8, 16),
    **{f"model.layers.0.{n}_layernorm.weight": (8,) for n in ("input", "post_attention")},
}  # fmt: skip


def folder(path: Path, changes=None, tensors=None) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG | (changes or {})))
    values = {name: np.zeros(shape, np.float32) for name, shape in WEIGHTS.items()}
    save_file(values | (tensors or {}), path / "model.safetensors")
    return path


def judge(path: Path, block_size: int = 64):
    found = locate_model(str(path))
    config = read_model_config(found)
    return require_trainable(found, config, shape_of(config), block_size)[1]


def test_a_whole_dense_model_passes_in_silence(tmp_path):
    assert judge(folder(tmp_path)) == ()


@pytest.mark.parametrize("method", ["bitsandbytes", "fp8", "gptq", "awq", "compressed-tensors"])
def test_a_config_that_says_quantized_is_refused_with_its_method(tmp_path, method):
    said = {"quantization_config": {"quant_method": method}}
    for changes in (said, {"text_config": CONFIG | said}):
        with pytest.raises(
            ModelError, match=rf"is quantized \({method}\).*remove that from config"
        ):
            judge(folder(tmp_path, changes))


@pytest.mark.parametrize(
    ("method", "way"),
    [("gptq", "give the model that it was made from; with --use-lora --quantize nf4"),
     ("fp8", "FineGrainedFP8Config with dequantize"), ("mxfp4", "Mxfp4Config with dequantize")],
)  # fmt: skip
def test_what_is_possible_with_a_quantized_model_is_said(tmp_path, method, way):
    with pytest.raises(ModelError, match=way):
        judge(folder(tmp_path, {"quantization_config": {"quant_method": method}}))


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int32])
def test_packed_weights_are_refused_whatever_the_config_says(tmp_path, kind):
    key = "model.layers.0.self_attn.q_proj.qweight"
    with pytest.raises(ModelError, match=rf"is quantized \('{key}' is "):
        judge(folder(tmp_path, tensors={key: np.zeros((4, 8), kind)}))


def test_a_file_that_describes_the_quantization_is_found(tmp_path):
    (folder(tmp_path) / "hf_quant_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"quantized \(hf_quant_config.json\)"):
        judge(tmp_path)


def test_weights_of_64_bits_are_no_quantization(tmp_path):
    path = folder(tmp_path, tensors={"model.layers.0.mlp.up_proj.weight": np.zeros((16, 8))})
    assert judge(path) == ()
    assert "are F64: the run begins with them rounded to fp32" in rounded(path, "fp32")[0]


def test_another_form_of_the_weights_beside_them_is_not_counted(tmp_path):
    """As Mistral's consolidated.safetensors: transformers does not read it."""
    save_file({"w": np.zeros((99, 99), np.float32)}, folder(tmp_path) / "consolidated.safetensors")
    assert judge(tmp_path) == ()


def test_two_models_in_one_folder_are_refused(tmp_path):
    folder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-1-of-1.safetensors")
    index = {"weight_map": dict.fromkeys(WEIGHTS, "model-1-of-1.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert judge(tmp_path) == ()
    folder(tmp_path)
    with pytest.raises(ModelError, match="holds model.safetensors beside model.safetensors.index"):
        judge(tmp_path)


@pytest.mark.parametrize(("kind", "said"), [("float32", " F32: "), ("float16", "F16 and F32: ")])
def test_weights_that_bf16_rounds_are_told(tmp_path, kind, said):
    path = folder(tmp_path, tensors={"model.layers.0.mlp.up_proj.weight": np.zeros((2, 3), kind)})
    assert said in rounded(path, "bf16")[0]
    assert "are F32: the run begins with them rounded to fp16" in rounded(path, "fp16")[0]
    assert not rounded(path, "fp32")


def test_norms_that_a_run_rounds_are_told_and_frequencies_are_computed(tmp_path):
    named = {name: np.zeros(shape, np.float16) for name, shape in WEIGHTS.items()}
    named["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    assert not rounded(folder(tmp_path, tensors=named), "fp16")
    named["model.norm.weight"] = np.ones(8, np.float32)
    assert (
        "are F32: the run begins with them rounded to fp16"
        in (rounded(folder(tmp_path, tensors=named), "fp16")[0])
    )


def test_buffers_of_whole_numbers_are_no_quantization(tmp_path):
    masks = {"model.layers.0.attn.bias": np.ones((1, 1, 4, 4), np.uint8),
             "model.position_ids": np.arange(4), "model.masked": np.ones(4, np.bool_)}  # fmt: skip
    assert judge(folder(tmp_path, tensors=masks)) == ()


def test_a_built_in_name_is_the_hubs_model_in_a_run(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--Qwen--Qwen2.5-0.5B"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs/main").write_text("abc")
    (kept / "snapshots").mkdir()
    folder(kept / "snapshots/abc")
    found = locate_model("qwen2.5-0.5b")
    assert found == locate_model("Qwen/Qwen2.5-0.5B") == kept / "snapshots/abc"
    said = []
    console = SimpleNamespace(say=said.append)
    words = ["--model-name-or-path", "Qwen2.5-0.5B", "--dataset-name-or-path", "d"]
    inputs = locate(parse_args([*words, "--block-size", "64"]), tmp_path, console)
    assert (inputs.model, inputs.config.model.hub) == (found, "Qwen/Qwen2.5-0.5B")
    assert "Qwen2.5-0.5B is Qwen/Qwen2.5-0.5B on the hub" in said


def test_an_adapter_is_no_model_and_names_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    with pytest.raises(ModelError, match="is an adapter of 'some/base', not a model"):
        locate_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("[")
    with pytest.raises(ModelError, match="is an adapter of its base model"):
        locate_model(str(tmp_path))
    folder(tmp_path)
    with pytest.raises(ModelError, match="an adapter .* beside a model"):
        locate_model(str(tmp_path))


@pytest.mark.parametrize("rows", [24, 40])
def test_an_embedding_of_another_size_is_refused_with_both(tmp_path, rows):
    key = "model.embed_tokens.weight"
    with pytest.raises(ModelError, match=rf"'{key}' .* \[{rows}, 8\].* 32 rows: set vocab_size"):
        judge(folder(tmp_path, tensors={key: np.zeros((rows, 8), np.float32)}))


def test_a_mixture_that_no_key_names_is_known_by_its_size(tmp_path):
    experts = {f"model.layers.0.blocks.{n}.up": np.zeros((64, 64), np.float32) for n in range(4)}
    with pytest.raises(ModelError, match="holds 0.00 billion parameters"):
        judge(folder(tmp_path, tensors=experts))
    folder(tmp_path)
    seen = {f"model.visual.{n}.up": np.zeros((64, 64), np.float32) for n in range(4)}
    assert judge(folder(tmp_path, tensors=seen)) == ()


def test_a_plan_is_made_for_the_parameters_that_the_files_hold(tmp_path):
    """A kind whose MLP has no gate is taken for one with: its headers say otherwise."""
    folder(tmp_path, {"intermediate_size": 64})
    config = read_model_config(tmp_path)
    described = shape_of(config)
    shape, (said,) = require_trainable(tmp_path, config, described, 64)
    held = sum(np.prod(shape) for shape in WEIGHTS.values())
    assert described.parameters > 1.5 * held
    assert abs(shape.parameters - held) <= 3 * 8
    assert "planned for the 1,176 parameters" in said


@pytest.mark.parametrize(
    "name",
    ["lora_A.weight", "lora_magnitude_vector", "base_layer.weight", "modules_to_save.weight"],
)
def test_an_adapters_weights_are_known_without_its_config(tmp_path, name):
    key = f"base_model.model.model.layers.0.self_attn.q_proj.{name}"
    with pytest.raises(ModelError, match="holds an adapter's weights"):
        judge(folder(tmp_path, tensors={key: np.zeros((4, 8), np.float32)}))


def test_samples_beyond_a_table_of_positions_are_refused(tmp_path):
    table = {"model.embed_positions.weight": np.zeros((66, 8), np.float32)}
    folder(tmp_path, tensors=table)
    assert not any("--block-size" in said for said in judge(tmp_path, 64))
    with pytest.raises(ModelError, match="beyond the 64 positions .* give --block-size 64"):
        judge(tmp_path, 65)
    folder(tmp_path, {"model_type": "gptj"})
    with pytest.raises(ModelError, match="beyond the 64 positions"):
        judge(tmp_path, 65)


def test_samples_beyond_what_rotations_were_trained_for_are_told(tmp_path):
    (said,) = judge(folder(tmp_path), 65)
    assert "--block-size 65 is beyond the 64 positions that the model was made for" in said


def test_an_attention_that_the_config_asks_for_is_told(tmp_path):
    (said,) = judge(folder(tmp_path, {"attn_implementation": "flash_attention_2"}))
    assert "asks for 'flash_attention_2' attention, but the run chooses its own" in said


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"weight_map": 1}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "no"}}',
     '{"weight_map": {"a": "model.safetensors"}}', "{"],
)  # fmt: skip
def test_an_index_that_names_no_files_is_refused(tmp_path, content):
    folder(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=r"index.json (names|says)"):
        stored_tensors(tmp_path)


@pytest.mark.parametrize(
    "damage", [b"", b"version https://git-lfs.", b"\0" * 8, b"\xff" * 40, b'\x02\0\0\0\0\0\0\0{"']
)
def test_a_file_without_a_whole_header_is_damaged(tmp_path, damage):
    path = folder(tmp_path) / "model.safetensors"
    for content in (damage, path.read_bytes()[:-1], path.read_bytes() + b"\0"):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="model.safetensors is damaged"):
            stored_tensors(tmp_path)
        folder(tmp_path)
