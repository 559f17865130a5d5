import json
from dataclasses import replace

import pytest

from train.config import parse_args
from train.errors import ConfigError
from train.planning.dsconfig import read_ds_config

NAMED = ["--model-name-or-path", "m", "--dataset-name-or-path", "d"]
RUN = parse_args(NAMED)


def write(tmp_path, content):
    path = tmp_path / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_stage_recomputation_and_offload_become_pins_and_the_rest_is_kept(tmp_path):
    ds = read_ds_config(
        write(
            tmp_path,
            {
                "zero_optimization": {
                    "stage": 3,
                    "reduce_bucket_size": 5e8,
                    "prefetch_bucket_size": 7,
                    "offload_optimizer": {"device": "cpu", "ratio": 0.5},
                },
                "activation_checkpointing": {"partition_activations": True},
                "anyrank": {"micro_tokens": 4096},
                "wall_clock_breakdown": True,
            },
        )
    )
    pins = {"zero": "3", "offload": "optimizer", "recompute": "full", "micro_tokens": "4096"}
    assert ds.pins == pins
    assert ds.extra == {
        "wall_clock_breakdown": True,
        "zero_optimization": {
            "reduce_bucket_size": 500_000_000,
            "stage3_prefetch_bucket_size": 7,
            "offload_optimizer": {"ratio": 0.5},
        },
    }


def test_an_empty_object_pins_nothing(tmp_path):
    ds = read_ds_config(write(tmp_path, {}))
    assert (dict(ds.pins), dict(ds.extra), ds.notice) == ({}, {}, "")


def test_a_stage_alone_leaves_offload_to_the_planner_and_devices_of_none_pin_it(tmp_path):
    assert read_ds_config(write(tmp_path, {"zero_optimization": {"stage": 2}})).pins == {
        "zero": "2"
    }
    none = {"zero_optimization": {"offload_optimizer": {"device": "none"}}}
    assert read_ds_config(write(tmp_path, none)).pins == {"offload": "none"}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('{"zero_optimization": {"stage": 3,}}', ["line 1, column"]),
        ('{"a": 1', ["is not JSON", "line 1, column 8"]),
        ('{"dump_state": true, "dump_state": false}', ["'dump_state' twice"]),
        ('{"zero_optimization": {"stage": 1, "stage": 2}}', ["'stage' twice"]),
        ("[1]", ["one JSON object"]),
        ('{"steps_per_print": NaN}', ["NaN"]),
        ('{"steps_per_print": 1e999}', ["steps_per_print", "whole number"]),
        ({"zero_optimisation": {}}, ["unknown key", "did you mean 'zero_optimization'"]),
        ({"deepspeed": {"bf16": {}}}, ["unknown key 'deepspeed': move what is in it to the top"]),
        ({"gradient_cliping": 5}, ["unknown key", "did you mean 'gradient_clipping'"]),
        ({"stage": 3}, ["'stage'", "'zero_optimization'"]),
        ({"zero_optimization": {"stge": 3}}, ["zero_optimization.stge", "did you mean 'stage'"]),
        ({"zero_optimization": {"stage": 4}}, ["one of 0, 1, 2, 3", "to 4, but"]),
        ({"zero_optimization": {"stage": True}}, ["one of 0, 1, 2, 3"]),
        ({"zero_optimization": {"reduce_bucket_size": -1}}, ["at least 1", "-1"]),
        ({"zero_optimization": 3}, ["must be an object"]),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, ["none, cpu"]),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, ["offload_optimizer"]),
        ({"zero_optimization": {"mics_shard_size": 4}}, ["removed"]),
        ({"elasticity": {"enabled": True}}, ["elasticity", "removed"]),
        ({"pipe_parallel_size": 1}, ["'pipe_parallel_size': leave it out"]),
        ({"curriculum_learning": {}}, ["removed"]),
        ({"train_micro_batch_size_per_gpu": 4}, ["--batch-size"]),
        ({"gradient_accumulation_steps": 4}, ["--batch-size"]),
        ({"train_batch_size": 255}, ["--batch-size is 256: give --batch-size 255, or leave"]),
        ({"gradient_clipping": 0.5}, ["--max-grad-norm 0.5"]),
        ({"fp16": {"enabled": True}}, ["--precision is bf16"]),
        ({"bf16": {"enabled": False}}, ["--precision is bf16"]),
        ({"optimizer": {"type": "Lamb"}}, ["the optimizer is AdamW"]),
        ({"optimizer": {"params": {"betas": [0.9, 0.98]}}}, ["betas", "[0.9, 0.999] in every run"]),
        ({"optimizer": {"params": {"lrr": 1}}}, ["unknown key 'optimizer.params.lrr'", "'lr'?"]),
        (
            {"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 9}}},
            ["--lr-schedule linear", "--max-steps 9", "not given"],
        ),
        ({"tensorboard": {}}, ["--report-to"]),
        ({"zero_optimization": {"stage": 0}}, ["stage' to 0", "in bf16: set it to 1, 2 or 3"]),
        ({"scheduler": {"type": "OneCycle"}}, ["'scheduler.type' to", "--lr-schedule"]),
        ({"scheduler": {"type": "WarmupDecayLR", "params": {}}}, ["--lr-schedule linear"]),
        ({"bf16": {"enabled": "true"}}, ["it must be true or false"]),
        ({"gradient_clipping": "1.0"}, ["it must be a number: give --max-grad-norm"]),
        ('{\n  // small cards\n  "bf16": {}}', ["no comments", '"_comment"']),
        (
            {"activation_checkpointing": {"profile": True}, "anyrank": {"recompute": "none"}},
            ["recompute", "keep one"],
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(tmp_path, content, parts):
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        read_ds_config(path, RUN)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    for part in parts:
        assert part in text


def test_a_missing_file_names_those_nearby(tmp_path):
    write(tmp_path, {})
    with pytest.raises(ConfigError, match=r"there is no ds_config .*did you mean 'ds\.json'"):
        read_ds_config(tmp_path / "dss.json")
    with pytest.raises(ConfigError, match=r"there are .*ds\.json"):
        read_ds_config(tmp_path / "something-else-altogether-quite-long.txt")


def test_a_folder_and_bytes_that_are_not_text_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="is a folder"):
        read_ds_config(tmp_path)
    (tmp_path / "x.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ConfigError, match="cannot be read: .*save it as UTF-8"):
        read_ds_config(tmp_path / "x.json")


def test_all_that_must_change_is_named_in_one_message_each_with_its_argument(tmp_path):
    fixed = {
        "optimizer": {"type": "AdamW", "params": {"lr": 5e-5, "eps": 1e-8, "weight_decay": 0.1}},
        "zero_optimization": {"stage": 2, "stge": 1},
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 8,
    }
    with pytest.raises(ConfigError) as caught:
        read_ds_config(write(tmp_path, fixed), RUN)
    assert str(caught.value) == (
        f"{tmp_path / 'ds.json'} has the unknown key 'zero_optimization.stge'; did you mean "
        "'stage'?; and sets 'optimizer.params.lr' to 5e-05, but --lr is 2e-06: give --lr 5e-05, or "
        "leave it out; and sets 'optimizer.params.weight_decay' to 0.1, but --weight-decay is 0: "
        "give --weight-decay 0.1, or leave it out; and sets 'train_micro_batch_size_per_gpu' to 4 "
        "and 'gradient_accumulation_steps' to 8: give --batch-size, the samples of the whole job "
        "in a step, here 32 for each GPU, and leave both out"
    )
    del fixed["zero_optimization"]["stge"]
    fixed["train_batch_size"] = 256  # the whole job's: how it is cut is the planner's
    run = parse_args([*NAMED, "--lr", "5e-5", "--weight-decay", "0.1"])
    ds = read_ds_config(write(tmp_path, fixed), run)
    assert ds.pins == {"zero": "2"}
    assert ds.notice.endswith(
        "optimizer, train_batch_size as the arguments say; train_micro_batch_size_per_gpu, "
        "gradient_accumulation_steps not used, since no step depends on it"
    )


def test_auto_and_what_agrees_with_the_run_pass_with_one_notice(tmp_path):
    auto = {
        "fp16": {"enabled": "auto", "loss_scale": 0, "hysteresis": 2},
        "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}},
        "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": "auto"}},
        "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "sub_group_size": 0},
        "train_batch_size": 256,
        "gradient_clipping": 1.0,
    }
    ds = read_ds_config(write(tmp_path, auto), RUN)
    assert (ds.pins, ds.extra) == ({"zero": "3"}, {})
    assert ds.notice == (
        f"{tmp_path / 'ds.json'}: fp16, bf16.enabled, optimizer, scheduler, "
        "zero_optimization.reduce_bucket_size, zero_optimization.sub_group_size left to the "
        "planner and the arguments; train_batch_size, gradient_clipping as the arguments say; "
        "of the scheduler, which does not say so, warmup_type is linear, not DeepSpeed's log"
    )


def test_what_a_schedule_leaves_out_is_told_where_deepspeed_would_take_another_value(tmp_path):
    run = parse_args([*NAMED, "--warmup-steps", "10", "--lr-schedule", "cosine"])

    def told(params):
        content = {"scheduler": {"type": "WarmupCosineLR", "params": params}}
        return read_ds_config(write(tmp_path, content), run).notice.partition("say so, ")[2]

    assert told({"warmup_type": "linear"}) == (
        "warmup_num_steps is 10, not DeepSpeed's 1000, cos_min_ratio is 0, not DeepSpeed's 0.0001"
    )
    assert told({"warmup_num_steps": 10, "warmup_type": "linear", "cos_min_ratio": 0}) == ""


def test_a_warm_up_that_is_a_share_of_the_run_is_not_one_of_no_steps(tmp_path):
    none = {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 0}}}
    assert "scheduler as the arguments say" in read_ds_config(write(tmp_path, none), RUN).notice
    run = parse_args([*NAMED, "--warmup-ratio", "0.1"])
    with pytest.raises(ConfigError, match="sets 'scheduler.params.warmup_num_steps' to 0, but"):
        read_ds_config(write(tmp_path, none), run)


@pytest.mark.parametrize(
    "content",
    [
        {"zero_optimization": {"stage": "auto", "offload_optimizer": {"device": "auto"}}},
        {"zero_optimization": {"zero_quantized_weights": False, "cpu_offload": False}},
        {"amp": {"enabled": False, "opt_level": "O1"}, "elasticity": {"enabled": False}},
        {"sparse_gradients": False, "zero_optimization": {"mics_shard_size": -1}},
        {"compile": {"deepcompile": False}, "tensor_parallel": {"autotp_size": 0}},
        {"zero_optimization": {"offload_param": {"device": "auto", "pin_memory": True}}},
        {"activation_checkpointing": {"partition_activations": False, "cpu_checkpointing": False}},
        {"activation_checkpointing": {"number_checkpoints": None}},
        {"fp16": {"enabled": False}, "sequence_parallel_size": 1, "wandb": {"enabled": False}},
        {"_comment": "for small cards", "// note": 1, "comment": "x"},
        {"bf16": {"enabled": True}},
        {"bfloat16": {"enabled": True}, "optimizer": {"type": "adamw"}},
        {"comms_logger": {"prof_ops": []}},
    ],
)
def test_what_is_off_auto_or_a_comment_says_nothing(tmp_path, content):
    ds = read_ds_config(write(tmp_path, content), RUN)
    assert (ds.pins, {key: value for key, value in ds.extra.items() if any(value.values())}) == (
        {},
        {},
    )


def test_the_section_of_fp16_follows_the_precision(tmp_path):
    usual = {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16, "hysteresis": 2}
    half = replace(RUN, model=replace(RUN.model, precision="fp16"))
    for run in (RUN, half):
        assert "fp16" not in read_ds_config(write(tmp_path, {"fp16": usual}), run).extra
    read_ds_config(write(tmp_path, {"fp16": {"enabled": True}}), half)
    # How the scale moves is the run's own, since no step depends on it.
    others = {"fp16": usual | {"initial_scale_power": 32, "loss_scale_window": 500}}
    assert "fp16" not in read_ds_config(write(tmp_path, others), half).extra
    assert read_ds_config(write(tmp_path, others), half).notice.endswith(
        "; fp16.initial_scale_power, fp16.loss_scale_window not used, since no step depends on it"
    )
    static = write(tmp_path, {"fp16": usual | {"loss_scale": 128}})
    read_ds_config(static, RUN)
    with pytest.raises(ConfigError, match="'fp16.loss_scale' to 128: it is 0 in every run"):
        read_ds_config(static, half)
