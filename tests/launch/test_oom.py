import json
from pathlib import Path

from train.launch.oom import MARGIN, limit, note

CPU = {"cpu"}


def attempt(run_dir: Path, number: int, predicted: float) -> None:
    folder = run_dir / "attempts" / f"{number:04d}"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps({"memory": {"total": predicted}}))
    (folder / "environment.json").write_text(json.dumps({"hosts": ["0: cpu", "1: cpu"]}))


def test_each_failure_lowers_what_the_next_plan_may_be_predicted_at(tmp_path: Path) -> None:
    assert limit(tmp_path, CPU) is None
    attempt(tmp_path, 1, 1000.0)
    assert note(tmp_path, 3, "node2") == 1000.0
    assert limit(tmp_path, CPU) == MARGIN * 1000.0
    attempt(tmp_path, 2, 900.0)
    assert limit(tmp_path, CPU) == MARGIN * 1000.0
    note(tmp_path, 0, "node1")
    assert limit(tmp_path, CPU) == MARGIN * 900.0


def test_a_start_that_failed_before_it_planned_teaches_nothing(tmp_path: Path) -> None:
    (tmp_path / "attempts" / "0001").mkdir(parents=True)
    assert note(tmp_path, 0, "node1") is None
    assert limit(tmp_path, CPU) is None


def test_what_ran_out_on_other_devices_limits_nothing(tmp_path: Path) -> None:
    attempt(tmp_path, 1, 1000.0)
    note(tmp_path, 0, "node1")
    assert limit(tmp_path, {"NVIDIA H100 80GB HBM3"}) is None
    assert limit(tmp_path, {"NVIDIA H100 80GB HBM3", "cpu"}) == MARGIN * 1000.0
