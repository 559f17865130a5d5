import json

import pytest

from train.errors import ModelError, PlanError
from train.planning import built_in, find_shape, shape_of
from train.planning.models import planned_shape, remarks

SMALL = {"vocab_size": 1000, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
GROUPED = SMALL | {"num_key_value_heads": 2, "intermediate_size": 300}
HEADED = GROUPED | {"head_dim": 48}


# Parameters of transformers 5.23's own modules, built from these configs on the meta device.
@pytest.mark.parametrize(
    ("family", "config", "parameters"),
    [
        ("llama", GROUPED, 749952),
        ("mistral", GROUPED, 749952),
        ("qwen2", GROUPED, 750720),
        ("qwen3", HEADED, 823968),
        ("gemma", HEADED, 695680),
        ("gemma2", HEADED, 696448),
        ("gemma3_text", HEADED, 696736),
        ("phi", SMALL | {"intermediate_size": 300}, 687852),
        ("phi3", GROUPED, 749952),
        ("gpt_neox", SMALL | {"intermediate_size": 300}, 687620),
        ("gpt2", {"vocab_size": 1000, "n_embd": 128, "n_layer": 3, "n_head": 4}, 854144),
        ("opt", SMALL | {"ffn_dim": 300}, 822020),
        ("bloom", {"vocab_size": 1000, "hidden_size": 128, "n_layer": 3, "n_head": 4}, 723328),
        ("mpt", {"vocab_size": 1000, "d_model": 128, "n_layers": 3, "n_heads": 4}, 718720),
        ("falcon", SMALL, 645120),
        ("starcoder2", GROUPED | {"use_bias": True, "tie_word_embeddings": True}, 510084),
        ("stablelm", GROUPED, 750848),
        ("olmo", GROUPED, 749056),
        ("olmo2", GROUPED, 750528),
        ("cohere", GROUPED | {"tie_word_embeddings": True}, 621568),
        ("cohere2", GROUPED | {"tie_word_embeddings": True}, 621568),
        ("olmo3", GROUPED, 750528),
        ("arcee", GROUPED, 634752),
    ],
)
def test_parameters_are_counted_to_the_last_element(family, config, parameters):
    assert shape_of({"model_type": family, **config}).parameters == parameters


def test_built_in_shapes_have_their_published_sizes():
    sizes = {
        "mistral-7b": 7.248e9,
        "llama-3-8b": 8.030e9,
        "llama-3-70b": 70.55e9,
        "qwen2.5-7b": 7.616e9,
        "gpt-neox-20b": 20.55e9,
        "mpt-7b": 6.649e9,
        "gemma-7b": 8.538e9,
        "gemma-2-9b": 9.242e9,
    }
    for name, size in sizes.items():
        assert built_in(name).parameters == pytest.approx(size, rel=2e-3)


def test_a_shape_is_read_from_a_folder_a_name_or_a_description(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **GROUPED}))
    assert find_shape(str(tmp_path)).parameters == 749952
    assert find_shape("Mistral-7B").layers == 32
    text = "layers=3,hidden=128,heads=4,kv_heads=2,ffn=300,vocab=1000"
    assert find_shape(text).parameters == 749952
    assert find_shape(text + ",tied=1").parameters == 749952 - 128_000
    assert not find_shape(text + ",gated=0").gated


def test_sliding_attention_costs_less_beyond_its_window():
    short, long = built_in("mistral-7b"), built_in("mistral-7b-v0.1")
    assert long.attention_flops(4096) == pytest.approx(short.attention_flops(4096))
    assert long.attention_flops(32768) < 0.3 * short.attention_flops(32768)


@pytest.mark.parametrize(
    "said",
    [{"sliding_window_pattern": 6}, {}, {"layer_types": 22 * ["sliding_attention"] + 4 * ["full"]}],
)
def test_layers_that_attend_to_everything_are_counted_beside_those_that_slide(said):
    """Gemma 3 1B: of 26 layers every sixth attends to all, the others to 512 tokens."""
    config = {
        "model_type": "gemma3_text", "vocab_size": 262144, "hidden_size": 1152, "head_dim": 256,
        "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1,
        "intermediate_size": 6912, "sliding_window": 512,
    }  # fmt: skip
    near = (512 * 513 / 2 + (8192 - 512) * 512) / 8192
    exact = 4 * 4 * 256 * (4 * 8193 / 2 + 22 * near)
    assert shape_of(config | said).attention_flops(8192) == pytest.approx(exact)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("mistral-8b", "did you mean 'mistral-7b'"),
        ("layers=3,hiden=4", "did you mean 'hidden'"),
        ("layers=3,hidden=x,heads=1,ffn=1,vocab=1", "hidden must be a whole number"),
        ("layers=3,hidden=128", "lacks heads, ffn, vocab"),
        ("layers=3,layers=4,hidden=8,heads=1,ffn=1,vocab=1", "gives layers twice"),
        ("layers=3,hidden=8,heads=100,ffn=1,vocab=1", "cannot be shared by heads=100"),
        ("layers=3,hidden=8,heads=3,ffn=1,vocab=1", "or head_dim be given"),
        ("layers=99999999,hidden=8,heads=1,ffn=1,vocab=1", "from 1 to 10000000"),
        ("layers=3,,hidden=8", "its parts are"),
    ],
)
def test_an_unknown_model_is_one_sentence(text, part):
    with pytest.raises(PlanError, match=part):
        find_shape(text)


def test_what_is_not_a_dense_language_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="mixture of experts"):
        shape_of({"model_type": "mixtral", "num_local_experts": 8, **GROUPED})
    with pytest.raises(ModelError, match="has no num_hidden_layers"):
        shape_of({"model_type": "llama", "hidden_size": 5})
    with pytest.raises(ModelError, match="one must divide"):
        shape_of({"model_type": "llama", **GROUPED, "num_key_value_heads": 3})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        find_shape(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"model_type": "bert"}, "'bert' has an encoder"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "'t5' has an encoder"),
        ({"model_type": "some", "architectures": ["SomeForMaskedLM"]}, "'some' has an encoder"),
        ({"model_type": "new", "text_config": {"moe_num_experts": 4}}, "mixture of experts"),
        ({"model_type": "bamba", "mamba_d_state": 16}, "'bamba' is not made of equal layers"),
        ({"model_type": "new", "layer_types": ["full_attention", "linear_attention"]},
         "has 'linear_attention'"),
        ({"model_type": "minicpm3", "kv_lora_rank": 256}, "has 'kv_lora_rank'"),
        ({"model_type": "new", "intermediate_size": [300, 200, 300]}, "has 'intermediate_size'"),
    ],
)  # fmt: skip
def test_what_sizes_alone_do_not_describe_is_refused_by_name(config, part):
    with pytest.raises(ModelError, match=part):
        planned_shape(GROUPED | config)


def test_the_text_part_of_a_model_of_text_and_images_is_planned_and_said():
    """Gemma 3 4B's and LLaVA 1.5's files leave out what is as transformers has it."""
    gemma = {"model_type": "gemma3", "vision_config": {}, "text_config": {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
        "num_hidden_layers": 34, "sliding_window": 1024}}  # fmt: skip
    shape = planned_shape(gemma)
    assert (shape.heads, shape.kv_heads, shape.head_dim) == (8, 4, 256)
    assert shape.parameters == pytest.approx(3.88e9, rel=2e-3)
    assert remarks(gemma) == (
        "only the text part of 'gemma3' is planned, as only that would be trained",
    )
    llava = {"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}}
    assert planned_shape(llava).parameters == pytest.approx(6.74e9, rel=1e-3)
    assert not remarks({"model_type": "qwen2", **GROUPED})
    assert "does not know the kind 'new'" in remarks({"model_type": "new", **GROUPED})[0]


def test_a_plain_mlp_stands_for_gpts_norms(tmp_path):
    text = "layers=3,hidden=128,heads=4,ffn=512,vocab=1000"
    assert (find_shape(text).norm, find_shape(text).activation) == ("rms", "silu")
    plain = find_shape(f"{text},gated=0")
    assert (plain.norm, plain.activation) == ("layer", "gelu")
    assert find_shape("layers=3,hidden=128,heads=3,head_dim=64,ffn=512,vocab=99").head_dim == 64
    with pytest.raises(ModelError, match=r"has no config\.json"):
        find_shape(str(tmp_path))
