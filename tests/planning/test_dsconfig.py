import json

import pytest

from train.errors import ConfigError
from train.planning.dsconfig import read_ds_config


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
    assert (dict(ds.pins), dict(ds.extra), ds.precision) == ({}, {}, None)


def test_a_stage_alone_leaves_offload_to_the_planner_and_devices_of_none_pin_it(tmp_path):
    assert read_ds_config(write(tmp_path, {"zero_optimization": {"stage": 2}})).pins == {
        "zero": "2"
    }
    none = {"zero_optimization": {"offload_optimizer": {"device": "none"}}}
    assert read_ds_config(write(tmp_path, none)).pins == {"offload": "none"}


def test_a_bf16_section_is_kept_as_a_statement_about_the_precision(tmp_path):
    assert read_ds_config(write(tmp_path, {"bf16": {"enabled": True}})).precision == "bf16"
    assert read_ds_config(write(tmp_path, {"bf16": {"enabled": False}})).precision == "fp32"


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
        ({"gradient_cliping": 5}, ["unknown key", "did you mean 'gradient_clipping'"]),
        ({"stage": 3}, ["'stage'", "'zero_optimization'"]),
        ({"zero_optimization": {"stge": 3}}, ["zero_optimization.stge", "did you mean 'stage'"]),
        ({"zero_optimization": {"stage": 4}}, ["one of 0, 1, 2, 3", "is 4"]),
        ({"zero_optimization": {"stage": True}}, ["one of 0, 1, 2, 3"]),
        ({"zero_optimization": {"stage": "auto"}}, ["auto", "the planner sets it"]),
        ({"zero_optimization": {"reduce_bucket_size": -1}}, ["at least 1", "-1"]),
        ({"zero_optimization": 3}, ["must be an object"]),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, ["none, cpu"]),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, ["offload_optimizer"]),
        ({"zero_optimization": {"mics_shard_size": 4}}, ["removed"]),
        ({"elasticity": {"enabled": False}}, ["elasticity", "removed"]),
        ({"curriculum_learning": {}}, ["removed"]),
        ({"train_batch_size": "auto"}, ["--batch-size"]),
        ({"train_micro_batch_size_per_gpu": 4}, ["--batch-size"]),
        ({"gradient_accumulation_steps": 4}, ["--batch-size"]),
        ({"gradient_clipping": 1.0}, ["--max-grad-norm"]),
        ({"optimizer": {"type": "AdamW"}}, ["--lr"]),
        ({"scheduler": {}}, ["--lr-schedule"]),
        ({"fp16": {"enabled": "auto"}}, ["--precision"]),
        ({"tensorboard": {}}, ["--report-to"]),
        (
            {"activation_checkpointing": {}, "anyrank": {"recompute": "none"}},
            ["recompute", "keep one"],
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(tmp_path, content, parts):
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        read_ds_config(path)
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
    with pytest.raises(ConfigError, match="cannot be read"):
        read_ds_config(tmp_path / "x.json")
