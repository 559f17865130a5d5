"""Every family of models: loaded whole, packed exactly, saved, and loaded back."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.engine.saving import save_model
from tests.support.fakes import FakeSplit
from train.checkpoint.folder import complete
from train.checkpoint.identity import RunFingerprint
from train.config import World, parse_args
from train.data.feed import Placement, step_batch
from train.engine import model as models
from train.engine import weights
from train.engine.gang import connect
from train.engine.huggingface import open_exporter
from train.engine.saver import Saver
from train.engine.start import start
from train.errors import ModelError, NonFiniteError
from train.planning import Plan, read_ds_config, render, shape_of

SIZE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 256,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "mistral": transformers.MistralConfig(**SIZE, sliding_window=16),
    "llama": transformers.LlamaConfig(**SIZE, tie_word_embeddings=True),
    "qwen2": transformers.Qwen2Config(**SIZE),
    "qwen3": transformers.Qwen3Config(**SIZE, head_dim=8),
    "gemma": transformers.GemmaConfig(**SIZE, head_dim=8),
    "gemma2": transformers.Gemma2Config(**SIZE, head_dim=8, sliding_window=16),
    "gemma3": transformers.Gemma3TextConfig(**SIZE, head_dim=8, sliding_window=16),
    "phi": transformers.PhiConfig(**SIZE, resid_pdrop=0.1),
    "phi3": transformers.Phi3Config(**SIZE),
    "gpt_neox": transformers.GPTNeoXConfig(
        **{k: v for k, v in SIZE.items() if k != "num_key_value_heads"}
    ),
    "bloom": transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=128),
}
SPLIT = FakeSplit(np.random.default_rng(1).integers(3, 60, 40).astype(np.int32))


@pytest.fixture(scope="module")
def gang():
    env = dict(os.environ)
    gang = connect(World(), env)
    os.environ["LOCAL_RANK"] = "0"
    yield gang
    gang.close()
    del os.environ["LOCAL_RANK"]


@pytest.fixture
def folder(request, tmp_path) -> Path:
    return make(getattr(request, "param", "llama"), tmp_path / "model")


def make(family: str, folder: Path) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family])
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0, 0.1)
    model.save_pretrained(folder)
    return folder


def configured(folder: Path, words: str = ""):
    named = ["--model-name-or-path", str(folder), "--dataset-name-or-path", "d"]
    return parse_args([*named, "--precision", "fp32", "--lr", "1e-3", *words.split()])


def engine(gang, folder: Path, words: str = "", zero: int = 2, packed: bool = True):
    """Rows of up to 100 tokens; all ranks of the job share them."""
    config = configured(folder, words)
    plan = Plan(zero=zero, micro_tokens=100, sp=gang.world.size)
    shape = shape_of(json.loads((folder / "config.json").read_text()))
    ds = read_ds_config(Path(__file__).resolve().parents[2] / "ds_configs" / "auto.json")
    rendered = render(plan, shape, config.model, config.optimizer, ds)
    return start(gang, config, folder, plan, rendered, packed=packed)


def losses(engine, steps: int = 3, capacity: int = 130) -> list[float]:
    world = engine.gang.world
    layout = Placement(
        0, 1, capacity, padded=not engine.model.packed, rank=world.rank, ranks=world.size
    )
    found = []
    for step in range(steps):
        share = step_batch(SPLIT, 0, 8, step, layout)
        found.append(engine.step(step, share.micros, share.loss_tokens, 1e-3).loss)
    return found


@pytest.mark.parametrize("folder", FAMILIES, indirect=True)
def test_a_family_trains_packed_as_padded_and_its_save_loads_back(folder, gang, tmp_path):
    packed = engine(gang, folder, zero=3)
    ours = losses(packed)
    padded = losses(engine(gang, folder, packed=False))
    np.testing.assert_allclose(ours, padded, rtol=1e-5)
    assert ours[-1] != ours[0]
    save_model(packed, folder, configured(folder).model, tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        logits = again(torch.arange(10, 20)[None]).logits
    assert logits.isfinite().all()
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    original = load_file(folder / "model.safetensors")
    assert stored.keys() == original.keys()
    assert any(not torch.equal(stored[key], original[key]) for key in stored)
    share = step_batch(SPLIT, 0, 8, 3, Placement(0, 1, 130, padded=not packed.model.packed))
    resumed = engine(gang, tmp_path / "saved", zero=1)
    assert packed.evaluate([share.micros])[0] == pytest.approx(
        resumed.evaluate([share.micros])[0], rel=1e-5
    )


def test_dropout_in_a_models_config_is_set_to_zero_and_said(gang, tmp_path):
    made = engine(gang, make("phi", tmp_path / "m"))
    assert "resid_pdrop in the model's config was set to 0" in made.model.notices


def test_layers_that_a_model_leaves_out_by_chance_are_kept_and_its_own_dropout_is_off():
    """OPT's layerdrop left whole layers out of a step, on each rank others."""
    shape = transformers.OPTConfig(layerdrop=0.5, dropout=0, attention_dropout=0.1)
    assert models._prepare(shape, Path())[1] == (
        "attention_dropout in the model's config was set to 0",
        "layerdrop in the model's config was set to 0",
    ) and (shape.layerdrop, shape.attention_dropout) == (0, 0)
    own = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Dropout(0.0))
    assert models._undropped(own) == (
        "dropout that the model's code has of its own was set to 0 (modules: 1)",
    )
    assert own[0].p == 0 and models._undropped(own) == ()


def test_attention_that_cannot_be_packed_is_padded_and_said(gang, tmp_path):
    made = engine(gang, make("bloom", tmp_path / "m"))
    assert not made.model.packed
    assert any("cannot be packed" in notice for notice in made.model.notices)


def test_long_rotations_do_not_depend_on_what_a_sample_is_packed_with(gang, tmp_path):
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0,
            "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}  # fmt: skip
    first = {"original_max_position_embeddings": 32}
    sizes = SIZE | {"max_position_embeddings": 128} | first
    config = transformers.Phi3Config(**sizes, rope_parameters=rope | first)
    make("phi3", folder := tmp_path / "m")
    config.save_pretrained(folder)
    made = engine(gang, folder, "--block-size 64")
    assert any("long rotations are used throughout" in notice for notice in made.model.notices)
    beside = losses(made)
    alone = losses(engine(gang, folder, "--block-size 64"), capacity=60)
    padded = losses(engine(gang, folder, "--block-size 64", packed=False))
    np.testing.assert_allclose(beside, alone, rtol=1e-6)
    np.testing.assert_allclose(beside, padded, rtol=1e-5)
    assert losses(engine(gang, folder, "--block-size 32"), capacity=60) != alone


def test_rotations_that_remember_the_longest_sample_are_refused_beyond_their_range(gang, tmp_path):
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    sizes = SIZE | {"max_position_embeddings": 32}
    make("llama", folder := tmp_path / "m")
    transformers.LlamaConfig(
        **sizes, tie_word_embeddings=True, rope_parameters=rope
    ).save_pretrained(folder)
    with pytest.raises(ModelError, match="beyond 32 tokens .* use --block-size 32"):
        engine(gang, folder, "--block-size 64")
    assert np.isfinite(losses(engine(gang, folder, "--block-size 32"), 1)).all()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("Connection closed")]
)
def test_a_fault_while_loading_is_not_called_a_wrong_model(gang, folder, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(type(error)):
        engine(gang, folder)


def test_a_file_that_is_not_whole_is_refused(gang, folder):
    path = folder / "model.safetensors"
    for content in (b"version https://git-lfs.github.com/spec/v1\n", path.read_bytes()[:-9]):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="model.safetensors is damaged"):
            engine(gang, folder)


def change(folder: Path, edit) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    edit(state)
    save_file(state, path, metadata={"format": "pt"})


@pytest.mark.parametrize("zero", [2, 3])
@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda s: s.pop("model.layers.1.mlp.up_proj.weight"), "has no weights for"),
        (
            lambda s: s.update({"model.norm.weight": torch.ones(31)}),
            r"shape \[31\], but config.json makes it \[32\]: the weights belong to another",
        ),
    ],
)
def test_weights_that_are_missing_or_of_another_shape_are_refused(
    folder, gang, edit, sentence, zero
):
    change(folder, edit)
    with pytest.raises(ModelError, match=sentence):
        engine(gang, folder, zero=zero)


def test_a_model_that_was_not_loaded_as_it_stands_is_refused(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    weights.check_loaded(folder, model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[-1, -1] += 1
    with pytest.raises(ModelError, match=r"layers.1.mlp.up_proj.weight' was not loaded"):
        weights.check_loaded(folder, model)


def test_a_change_of_any_single_element_is_found(folder, monkeypatch):
    """Drawn from each tensor's middle, and from both sides of where its pieces meet."""
    monkeypatch.setattr(weights, "CHUNK", 300)
    model = AutoModelForCausalLM.from_pretrained(folder)
    draw = np.random.default_rng(0)
    for name, parameter in model.named_parameters():
        flat = parameter.data.view(-1)
        inner = range(256, max(257, flat.numel() - 256))
        places = {0, flat.numel() - 1, 299, 300, *draw.choice(inner, 3)}
        for place in (int(place) for place in places if place < flat.numel()):
            kept = flat[place].clone()
            flat[place] = torch.nextafter(kept, torch.tensor(torch.inf))
            with pytest.raises(ModelError, match=f"'{name}' was not loaded"):
                weights.check_loaded(folder, model)
            flat[place] = kept
    weights.check_loaded(folder, model)


def test_tied_embeddings_that_differ_on_disk_are_refused(folder, gang):
    change(folder, lambda s: s.update({"lm_head.weight": s["model.embed_tokens.weight"] + 1}))
    with pytest.raises(ModelError, match="set tie_word_embeddings to false"):
        engine(gang, folder)


def test_a_router_loss_is_refused(tmp_path):
    config = FAMILIES["llama"].to_dict() | {"output_router_logits": True}
    with pytest.raises(ModelError, match="auxiliary router loss"):
        models._prepare(transformers.LlamaConfig(**config), tmp_path)


@pytest.mark.parametrize(
    ("zero", "words"), [(0, ""), (1, ""), (2, ""), (3, ""), (1, "--precision bf16")]
)
def test_a_step_that_is_not_finite_changes_nothing_and_names_its_samples(folder, gang, zero, words):
    made = engine(gang, folder, words, zero=zero)
    losses(made, 1)
    before = made.evaluate(batch(made))[0]
    share = step_batch(SPLIT, 0, 8, 1, Placement(0, 1, 130))
    hook = made.model.module.register_forward_hook(poison)
    with pytest.raises(NonFiniteError, match=r"step 2 is not finite in samples \[") as caught:
        made.step(1, share.micros, share.loss_tokens, 1e-3)
    hook.remove()
    assert caught.value.exit_code == 3
    assert made.evaluate(batch(made))[0] == before


def batch(made):
    return [step_batch(SPLIT, 0, 8, 5, Placement(0, 1, 130)).micros]


def poison(module, args, output):
    output.logits = output.logits * torch.tensor(float("inf"))
    return output


def test_an_adapter_trains_alone_and_loads_back_through_peft(folder, gang, tmp_path):
    from peft import AutoPeftModelForCausalLM

    made = engine(gang, folder, "--use-lora --lora-r 4 --lora-dropout 0.1", zero=3)
    ours = losses(made)
    other = losses(engine(gang, folder, "--use-lora --lora-r 4 --lora-dropout 0.1", zero=1))
    np.testing.assert_allclose(ours, other, rtol=1e-6)
    config = configured(folder, "--use-lora --lora-r 4 --lora-dropout 0.1").model
    save_model(made, folder, config, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    trained = {name for name, p in again.named_parameters() if "lora_B" in name and p.any()}
    assert len(trained) == 2 * 7


def test_the_norm_of_ten_million_elements_is_that_of_zero_to_seven_digits(gang, tmp_path):
    """ZeRO sums squares in fp64; summed in fp32 the norm, and the clipping, were off by 4e-4."""
    torch.manual_seed(0)
    sizes = SIZE | {"hidden_size": 256, "intermediate_size": 1024, "vocab_size": 16384}
    folder = tmp_path / "wide"
    AutoModelForCausalLM.from_config(transformers.LlamaConfig(**sizes)).save_pretrained(folder)
    batch = step_batch(SPLIT, 0, 8, 0, Placement(0, 1, capacity=2000))
    assert len(batch.micros) == 1
    plain, zero = (
        engine(gang, folder, "--max-grad-norm 0.1", zero=stage).step(
            0, batch.micros, batch.loss_tokens, 1e-3
        )
        for stage in (0, 1)
    )
    assert plain.grad_norm == pytest.approx(zero.grad_norm, rel=1e-7)


def test_the_text_part_of_a_larger_model_is_saved_as_a_model_that_loads_whole(gang, tmp_path):
    """Under the larger model's config.json every weight of it would be missing, that is random."""
    text = {
        "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8, "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0],
                            "partial_rotary_factor": 0.5},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32,
              "out_hidden_size": 32, "num_position_embeddings": 16}  # fmt: skip
    torch.manual_seed(0)
    config = transformers.Qwen3_5Config(text_config=text, vision_config=vision)
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "m")
    made = engine(gang, tmp_path / "m")
    assert any("only the text part of" in notice for notice in made.model.notices)
    losses(made, 1)
    save_model(made, tmp_path / "m", configured(tmp_path / "m").model, tmp_path / "saved")
    named = json.loads((tmp_path / "saved" / "config.json").read_text())["architectures"][0]
    _, info = getattr(transformers, named).from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
    assert engine(gang, tmp_path / "saved").model.notices[:1] == (
        "qwen3_5_text attention cannot be packed, so samples are padded",
    )


def test_host_memory_for_a_save_is_taken_before_the_first_step(gang, folder, tmp_path):
    """Or a save at the end would be where it runs out, and no step of the run would be kept."""
    made = engine(gang, folder, zero=1)
    saver = Saver(made, tmp_path, None, RunFingerprint({}, {}), keep=1)
    staging = saver._staging
    assert staging.numel() == 3 * sum(p.numel() for p in made.model.module.parameters())
    losses(made, steps=1)
    assert saver._reserve() is staging


def test_an_export_opens_each_file_of_a_checkpoint_once(gang, folder, tmp_path):
    """What one weight has opened is there for the others: a parse of all headers for each of them
    would take minutes.
    """
    config = configured(folder).model
    made = engine(gang, folder, zero=1)
    losses(made, steps=1)
    save_model(made, folder, config, tmp_path / "saved")
    checkpoint = complete(tmp_path / "saved-run")[0]
    exporter = open_exporter(checkpoint, folder, config)
    weights_of = exporter.named()
    exporter.values("model.norm.weight", weights_of["model.norm.weight"].shape)
    shutil.rmtree(checkpoint)
    for name, empty in weights_of.items():
        assert exporter.values(name, empty.shape).shape == empty.shape


def test_one_element_in_the_middle_of_a_tensor_makes_other_weights(tmp_path):
    tensors = {"a.weight": torch.zeros(64, 1024, dtype=torch.bfloat16), "b.bias": torch.ones(3)}
    save_file(tensors, tmp_path / "model.safetensors")
    before = weights.weights_fingerprint(tmp_path)
    tensors["a.weight"][32, 512] = 1
    save_file(tensors, tmp_path / "model.safetensors")
    assert weights.weights_fingerprint(tmp_path) != before
