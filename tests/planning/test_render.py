import json
from pathlib import Path

import pytest

from train.config import ModelConfig, OptimizerConfig, parse_args
from train.errors import PlanError
from train.planning import DsConfig, Plan, built_in, merge_pins, read_ds_config, render
from train.planning.pins import hpz_left_out

SHAPE = built_in("mistral-7b")
OPTIMIZER = OptimizerConfig(2e-6, "constant", 0, 0.0, 0.5)


def model(precision="bf16"):
    return ModelConfig("m", None, precision, None, False)


def rendered(plan, precision="bf16", ds=None):
    return render(plan, SHAPE, model(precision), OPTIMIZER, ds or DsConfig())


@pytest.mark.parametrize("dp", [1, 3, 8, 512])
def test_the_batch_triangle_holds_at_any_count(dp):
    config = rendered(Plan(3, 4096, dp=dp))
    micro, steps = config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]
    assert config["train_batch_size"] == micro * steps * dp


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_nothing_is_auto_and_sums_are_kept_in_fp32(zero):
    config = rendered(Plan(zero, 4096, dp=4))
    assert "auto" not in json.dumps(config)
    assert config["communication_data_type"] == "fp32"
    assert config["data_types"]["grad_accum_dtype"] == "fp32"
    assert config["gradient_clipping"] == 0.5
    assert config["bf16"]["enabled"] is True


def test_buckets_follow_the_model_and_not_deepspeeds_defaults():
    zero = rendered(Plan(3, 4096, dp=4))["zero_optimization"]
    assert zero["reduce_bucket_size"] == 4 * 4096**2
    assert zero["stage3_prefetch_bucket_size"] < 1.1 * SHAPE.layer_parameters
    assert zero["stage3_max_reuse_distance"] < SHAPE.parameters / 10
    assert zero["stage3_param_persistence_threshold"] > SHAPE.hidden


def test_offload_writes_the_sections_that_the_stage_has():
    two = rendered(Plan(2, 4096, offload="optimizer", dp=4))["zero_optimization"]
    assert two["offload_optimizer"]["device"] == "cpu"
    assert "offload_param" not in two
    three = rendered(Plan(3, 4096, offload="all", dp=4))["zero_optimization"]
    assert three["offload_param"]["device"] == "cpu"


def test_what_the_file_sets_wins_key_by_key():
    extra = {"zero_optimization": {"reduce_bucket_size": 99}, "communication_data_type": "bf16"}
    config = rendered(Plan(2, 4096, dp=4), ds=DsConfig(extra=extra))
    assert config["zero_optimization"]["reduce_bucket_size"] == 99
    assert config["zero_optimization"]["stage"] == 2
    assert config["communication_data_type"] == "bf16"


def test_stage_0_is_refused_in_bf16_and_rendered_in_fp32():
    with pytest.raises(PlanError, match="ZeRO stage 0"):
        rendered(Plan(0, 4096, dp=2))
    config = rendered(Plan(0, 4096, dp=2), "fp32")
    assert config["zero_optimization"] == {"stage": 0}
    assert config["bf16"]["enabled"] is False
    assert config["fp16"]["enabled"] is False


def test_a_second_copy_of_the_weights_is_rendered():
    assert rendered(Plan(3, 4096, dp=4, hpz=2))["zero_optimization"]["zero_hpz_partition_size"] == 2
    assert "zero_hpz_partition_size" not in rendered(Plan(3, 4096, dp=4))["zero_optimization"]
    for wrong in ({"zero": 1}, {"dp": 3}, {"offload": "all"}):
        with pytest.raises(PlanError, match="second copy of ZeRO-3's weights"):
            Plan(**({"zero": 3, "micro_tokens": 4096, "dp": 4, "hpz": 2} | wrong))


@pytest.mark.parametrize(
    ("zero", "ranks", "words"),
    [("3", 4, ""), ("3", 3, "does not divide 3 ranks"), ("1", 4, "is for ZeRO-3")],
)
def test_a_second_copy_in_a_file_that_cannot_be_is_left_out_with_a_line(
    zero, ranks, words, tmp_path
):
    path = tmp_path / "f.json"
    path.write_text(f'{{"zero_optimization": {{"stage": {zero}, "zero_hpz_partition_size": 2}}}}')
    ds = read_ds_config(path)
    config = parse_args(["--model-name-or-path", "m", "--dataset-name-or-path", "d"])
    pins = merge_pins(config, ds)
    assert pins.hpz == 2
    said = hpz_left_out(pins, config, ds, ranks)
    assert words in said and bool(said) == bool(words)


@pytest.mark.parametrize("file", ["zero3", "auto"])
@pytest.mark.parametrize("pin", ["zero=3", "hpz=2", "offload=all"])
def test_pins_of_zero3_are_refused_over_a_base_in_4_bits_and_never_dropped(file, pin):
    path = Path(__file__).resolve().parents[2] / f"ds_configs/{file}.json"
    named = "--model-name-or-path m --dataset-name-or-path d --use-lora --quantize nf4"
    config = parse_args([*named.split(), "--pin", pin])
    with pytest.raises(PlanError, match=f"--pin {pin} would divide the base that --quantize nf4"):
        merge_pins(config, read_ds_config(path, config))
