import os

import pytest

from train.errors import ConfigError
from train.output.record import environment, open_run_folder
from train.output.trackers import open_tracker


def test_secrets_are_redacted_and_unrelated_variables_left_out():
    found = environment({"HF_TOKEN": "s3cret", "NCCL_DEBUG": "INFO", "HOME": "/h"}, ["0: cpu"])
    assert found["variables"] == {"HF_TOKEN": "(redacted)", "NCCL_DEBUG": "INFO"}
    assert found["packages"]["numpy"]


def test_a_run_folder_that_is_a_file_is_refused(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ConfigError, match="give another --run-dir"):
        open_run_folder(blocked)


def test_tensorboard_receives_scalars(tmp_path):
    sink = open_tracker("tensorboard", tmp_path, {}, print)
    sink.write(1, {"train/loss": 2.0})
    sink.close()
    events = [name for _, _, names in os.walk(tmp_path / "tensorboard") for name in names]
    assert any("tfevents" in name for name in events)


def test_a_missing_library_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        open_tracker("wandb", tmp_path, {}, print)
