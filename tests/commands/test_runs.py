"""anyrank runs and anyrank stop, over folders that real supervisors and ranks write."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.test_supervise import finish, start, wait_for_step
from tests.report.test_report import LOSSES, make_run
from train.commands import runs, stop
from train.errors import ConfigError
from train.launch.owner import owner_of

ROOT = Path(__file__).resolve().parents[2]


def test_runs_are_listed_with_step_loss_gpus_speed_and_last_fault(tmp_path, capsys):
    make_run(tmp_path / "one", LOSSES, (2,), lines=["[info] [6/8] Training 9 steps..."])
    run = make_run(tmp_path / "two", LOSSES, (4,), done=False)
    said = "2026-01-01 00:00:00 host node2 is lost: no answer\n2026-01-01 00:00:02 starting again\n"
    (run / "launch.log").write_text(said)
    (tmp_path / "other").mkdir()
    assert runs.command([str(tmp_path)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert " ".join(head.split()) == " ".join(runs.HEADS)
    assert rows[0].split() == ["one", "done", "4/9", "2.1250", "2", "20", "-", "-"]
    assert rows[1].split()[:7] == ["two", "stopped", "4", "2.1250", "4", "20", "-"]
    assert rows[1].endswith("2026-01-01 00:00:00 host node2 is lost: no answer")
    assert len(rows) == 2


def test_the_table_fits_a_narrow_terminal_with_the_faults_below():
    fault = "2026-01-01 00:00:00 rank 3 on node2 ended with exit code 1: CUDA error: device lost"
    states = [
        runs.RunState("20260131-120000-mistral-tiny", "running", 12345, 20000, 1.2345, 16, 123456.0,
                      7261.0, fault),
        runs.RunState("20260131-130000-mistral-tiny", "done", 20, 20, 1.5, 2, 900.0),
    ]  # fmt: skip
    lines = runs.table(states, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith("20260131-120000-mistral-tiny") and "2:01:01" in lines[1]
    assert lines[2].startswith("  LAST FAULT: 2026-01-01 00:00:00 rank 3 on node2")
    assert lines[-1].startswith("20260131-130000")
    assert len(runs.table(states, 200).splitlines()) == 3
    assert runs.table(states, 200) == runs.table(states)


def test_before_the_first_run_there_is_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert runs.command([]) == 0 and capsys.readouterr().out == "No run here.\n"


def test_no_folder_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="there is no folder"):
        runs.command([str(tmp_path / "none")])
    with pytest.raises(ConfigError, match="is no run's folder"):
        stop.command([str(tmp_path)])


@pytest.mark.slow
def test_stop_is_heeded_while_training_and_waits_for_the_end(tmp_path, capsys):
    run = tmp_path / "r"
    process = start(run, 2, "--steps", "2000", "--checkpoints")
    wait_for_step(run, 3)
    assert runs.survey(tmp_path)[0].state == "running"
    words = [sys.executable, "-m", "train.cli", "stop", str(run)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert f"has ended: saved after step {last}\n" in done.stdout
    code, _, err = finish(process, run)
    assert code == 75, err
    assert not (run / "STOP").exists() and owner_of(run) is None
    assert stop.command([str(run)]) == 0
    assert "is not running: saved after step" in capsys.readouterr().out


@pytest.mark.slow
def test_a_stop_between_two_starts_is_not_lost(tmp_path):
    """The ranks that fail have seen no STOP, and the next ones would begin after it."""
    run = tmp_path / "r"
    process = start(run, 1, "--steps", "2000", "--checkpoints", "--accident", "0:5:kill")
    while not (run / "accident-0-5-kill").exists():
        time.sleep(0.01)
    (run / "STOP").touch()
    code, _, err = finish(process, run)
    assert code == 75, err
    assert "STOP: not started again; step 4 is saved" in err
