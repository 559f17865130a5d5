import json
import time
from pathlib import Path

import pytest

from train.errors import ExitCode
from train.hosts.hostfile import Host, Hostfile
from train.launch.job import LaunchJob
from train.launch.oom import MARGIN, limit, note
from train.launch.outcome import Death, Outcome
from train.launch.output import Output
from train.launch.supervise import Attempts

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


MEMORY, FAULT = ExitCode.OUT_OF_MEMORY, ExitCode.FAULT


@pytest.mark.parametrize(
    ("ends", "believed"),
    [
        ([MEMORY], [True]),
        ([FAULT, MEMORY], [False, False]),  # what the first ranks held may not have been free
        ([FAULT, MEMORY, MEMORY], [False, False, True]),
        ([MEMORY, MEMORY], [True, True]),
        ([FAULT, "step", MEMORY], [False, True]),
    ],
)
def test_memory_that_runs_out_after_a_kill_is_believed_once_it_was_free(
    tmp_path: Path, ends: list[ExitCode | str], believed: list[bool]
) -> None:
    job = LaunchJob(Hostfile((Host("n1", 1),)), 1, (), tmp_path, False, {}, tmp_path)
    made, found = Attempts(job, Output(None)), []
    for number, code in enumerate(ends):
        if isinstance(code, str):
            line = {"step": 1, "seconds": 1.0, "time": time.time()}
            (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
            continue
        attempt(tmp_path, number, 1000.0 - number)
        made.ends(job, Outcome(deaths=(Death(0, "n1", code, 0.0),)), [], again=False)
        found.append((tmp_path / "attempts" / f"{number:04d}" / "out_of_memory.json").exists())
    assert found == believed
