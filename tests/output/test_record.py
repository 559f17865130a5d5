import os

import pytest

from train.errors import ConfigError, FaultError
from train.output.console import step_line
from train.output.record import EvalRecord, StepRecord, environment, open_run_folder
from train.output.trackers import open_tracker


def test_secrets_are_redacted_and_unrelated_variables_left_out():
    given = {"HF_TOKEN": "s3cret", "SLURM_JWT": "s3cret", "NCCL_DEBUG": "INFO", "HOME": "/h"}
    given["HF_ENDPOINT"] = "https://me:s3cret@mirror/hub"
    found = environment(given, ["0: cpu"])
    assert found["variables"] == {
        "HF_TOKEN": "(redacted)", "SLURM_JWT": "(redacted)", "NCCL_DEBUG": "INFO",
        "HF_ENDPOINT": "https://(redacted)@mirror/hub",
    }  # fmt: skip
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


def test_a_line_of_a_step_fits_the_terminal_and_always_tells_the_time_left():
    record = StepRecord(
        step=120, loss=1.234567, lr=2e-5, grad_norm=1.5, samples=8, loss_tokens=9, tokens=10,
        padded_tokens=20, seconds=1.3, tokens_per_s=806700.33, mfu=0.41, world_size=2, plan="",
        sample_hash="", peak_bytes=1, skipped=0, time=0.0,
    )  # fmt: skip
    whole = step_line(record, 4000, 1.25, 5044.0, None)
    assert whole.startswith(
        "| INFO | [Step 120/4000] | Loss: 1.234567 | Duration: 1.30 | "
        "Throughput: 806700.33 tokens/sec | LR: 2e-05 | Grad norm: 1.500 | Epoch: 1.25 |"
    )
    for width in (80, 100, 120, 160):
        line = step_line(record, 4000, 1.25, 5044.0, width)
        assert len(line) <= width and "Left: 1:24:04 |" in line
    assert step_line(record, 4000, 1.25, 5044.0, 80) == (
        "| [Step 120/4000] | Loss: 1.234567 | 1.30 s | 806700 tokens/s | Left: 1:24:04 |"
    )
    assert step_line(record, 4000, 1.25, 5044.0, 160).endswith("| Left: 1:24:04 |")


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("metrics.jsonl", lambda folder: folder.write(EvalRecord(1, 2.0, 3))),
        ("attempts/0001/log.txt", lambda folder: folder.log("a line")),
        ("attempts/0001/plan.json", lambda folder: folder.note("plan.json", {})),
        ("attempts/0001/samples.txt", lambda folder: folder.write_text("samples.txt", ["x"])),
        ("DONE", lambda folder: folder.finish()),
    ],
)
def test_a_full_disk_is_one_sentence(name, act, tmp_path):
    folder = open_run_folder(tmp_path)
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\): free"):
        act(folder)


def test_a_disk_that_fails_otherwise_is_a_fault(tmp_path):
    folder = open_run_folder(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(FaultError, match="metrics.jsonl cannot be written"):
        folder.write(EvalRecord(1, 2.0, 3))
