"""A real training whose hosts change while it runs: cut off, returned, added, refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import ROOT, Lab, finish, left_of
from tests.cluster.curves import check_curve, records, wait_for_step
from train.output.metrics import PHASES, read_metrics

WORDS = "--batch-size 96 --block-size 96 --save-step 10 --lr 1e-4 --precision fp32 "
WORDS += "--ds-config ds_configs/auto.json"


def resize(lab: Lab, run_dir: Path, *words: str) -> tuple[int, str]:
    line = [sys.executable, "-P", "-m", "train.cli", "resize", str(run_dir), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(line, cwd=ROOT, env=lab.env, text=True, timeout=300, check=False, **pipes)
    return done.returncode, done.stdout


def test_a_host_cut_off_is_taken_back_a_third_is_added_and_a_dead_one_refused(
    lab: Lab, tiny: Path, ragged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, files = tmp_path / "run", []
    for count in (2, 3, 4):
        files.append(tmp_path / f"hosts{count}")
        files[-1].write_text("".join(f"node{i} slots=2\n" for i in range(1, count + 1)))
    named = ["--model-name-or-path", tiny, "--dataset-name-or-path", ragged]
    words = [*named, *WORDS.split()]
    argv = [ROOT / "launch.sh", "4", "--hostfile", files[0], "--run-dir", run_dir, *words]
    process = lab.start([*argv, "--max-steps", "100000"])
    try:
        wait_for_step(run_dir, 12, 200)
        lab.act("cut", "2")
        wait_for_step(run_dir, 13, 200, ranks=2)
        lab.act("mend", "2")
        wait_for_step(run_dir, 14, 300, ranks=4)
        added = resize(lab, run_dir, "6", "--hostfile", str(files[1]))
        lab.act("kill", "4")
        refused = resize(lab, run_dir, "8", "--hostfile", str(files[2]))
        os.kill(process.pid, signal.SIGTERM)
        out, _ = process.communicate(timeout=120)
    finally:
        lab.act("mend", "2")
        lab.act("kill", "4")
        lab.act("serve", "4")
        process.kill()
    assert process.returncode == 75, out[-3000:]
    assert left_of(run_dir) == []
    assert "host node2 is good again: it is taken back at the next checkpoint" in out
    assert added[0] == 0 and "the run goes on with 6 GPUs" in added[1]
    assert refused[0] == 2 and "not resized: host node4: it does not answer" in refused[1]
    made = records(run_dir)
    check_curve(run_dir, made[-1]["step"])
    # A step that was lost with the host stands there as it was made again.
    assert list(dict.fromkeys(line["world_size"] for line in made)) == [4, 2, 6]
    again = [line["world_size"] for line in made]
    assert 4 in again[again.index(2) :], "taken back"
    whole = tmp_path / "whole"
    argv = [ROOT / "launch.sh", "1", "--run-dir", whole, *words]
    finish(lab.start([*argv, "--max-steps", str(made[-1]["step"])]), 500)
    pairs = list(zip(made, records(whole), strict=True))
    assert all(one["sample_hash"] == other["sample_hash"] for one, other in pairs)
    found = max(abs(one["loss"] / other["loss"] - 1) for one, other in pairs)
    with capsys.disabled():
        print(f"\n\n4, 2, 4, 6 ranks over {len(made)} steps: {found:.1e}")
        for line in read_metrics(run_dir / "metrics.jsonl").restarts:
            parts = ", ".join(f"{name} {line[name] or 0:.1f}" for name in PHASES)
            print(f"{line['world_size']} ranks from step {line['step']}: {parts}")
    assert found <= 1e-6
