"""The batch script on a real Slurm: several nodes, preemption, a smaller size on return."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.chaos.launches import difference, launch, steps

ROOT = Path(__file__).resolve().parents[2]
WORDS = "--batch-size 12 --block-size 96 --max-steps 100 --lr 2e-3 --lr-schedule linear "
WORDS += "--precision fp32 --ds-config ds_configs/auto.json --pin micro_tokens=400"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder whose launch.sh supervises counting ranks instead of a training."""
    supervised = ROOT / "tests" / "launch" / "supervised.py"
    script = f'#!/bin/sh\nshift; dir=$1; shift\nexec {sys.executable} {supervised} - "$dir" "$@"\n'
    (tmp_path / "launch.sh").write_text(script)
    (tmp_path / "launch.sh").chmod(0o755)
    return tmp_path


def submit(checkout: Path, env: dict[str, str], options: Sequence[str], *words: str) -> str:
    shown = subprocess.run(
        ["sbatch", "--parsable", *options, ROOT / "slurm" / "train.sbatch", *words],
        cwd=checkout, env=env, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return shown.stdout.strip()


def call(env: dict[str, str], *words: str) -> str:
    shown = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=True)
    return shown.stdout


def wait_for(path: Path, lines: int, patience: float) -> None:
    deadline = time.monotonic() + patience
    while not path.exists() or path.read_text().count("\n") < lines:
        assert time.monotonic() < deadline, f"{path} was not written in {patience} s"
        time.sleep(0.1)


def wait_for_state(env: dict[str, str], job: str, state: str) -> None:
    deadline = time.monotonic() + 60
    while state not in call(env, "squeue", "-h", "-j", job, "-o", "%T"):
        assert time.monotonic() < deadline, f"job {job} does not become {state}"
        time.sleep(0.2)


def start_now(env: dict[str, str], job: str) -> None:
    """Lift the pause before a job that was queued again starts: Slurm may set it a moment late.

    In between the job may be neither pending nor running, while its first start is cleaned up; one
    that is started before that has ended may be held.
    """
    deadline = time.monotonic() + 120
    while "RUNNING" not in (state := call(env, "squeue", "-h", "-j", job, "-o", "%T (%r)")):
        assert time.monotonic() < deadline, f"job {job} does not start again: {state}"
        time.sleep(2)
        for words in ("update", f"JobId={job}", "StartTime=now"), ("release", job):
            subprocess.run(["scontrol", *words], env=env, capture_output=True, check=False)


def wait_for_end(env: dict[str, str], job: str) -> None:
    deadline = time.monotonic() + 30
    while call(env, "squeue", "-h", "-o", "%i").split():
        assert time.monotonic() < deadline, f"job {job} does not end"
        time.sleep(0.2)


def test_the_tasks_of_a_step_are_ranks_of_one_run(slurm: dict[str, str]) -> None:
    """With the variables that this Slurm sets, whatever its version."""
    script = "import json, os; from train.hosts.tasks import variables; "
    script += "print(json.dumps(variables(os.environ)))"
    words = ("srun", "-N2", "-n3", "--distribution=block", sys.executable, "-c", script)
    shown = call(slurm | {"PYTHONPATH": str(ROOT)}, *words)
    found = sorted((json.loads(line) for line in shown.splitlines()), key=lambda one: one["RANK"])
    assert [one["RANK"] for one in found] == ["0", "1", "2"]
    assert {one["WORLD_SIZE"] for one in found} == {"3"}
    places = [(one["CROSS_RANK"], one["LOCAL_RANK"], one["LOCAL_SIZE"]) for one in found]
    assert places == [("0", "0", "2"), ("0", "1", "2"), ("1", "0", "1")]
    assert len({(one["MASTER_ADDR"], one["MASTER_PORT"]) for one in found}) == 1
    alone = call(slurm | {"PYTHONPATH": str(ROOT)}, "srun", "-n1", sys.executable, "-c", script)
    assert json.loads(alone) == {}


def test_a_job_of_two_nodes_runs_unedited(checkout: Path, slurm: dict[str, str]) -> None:
    job = submit(checkout, slurm, ("-N2", "--gpus-per-node=2"), "--steps", "3")
    wait_for(checkout / "runs" / job / "DONE", 0, 60)
    wait_for_end(slurm, job)
    log = (checkout / f"anyrank-{job}.log").read_text()
    assert "4 CPU ranks" in log and "s1 x 2, s2 x 2" in log
    assert "rank 0 of 4 from step 0" in log


def test_a_preempted_training_comes_back_on_one_node_and_ends_with_the_uninterrupted_curve(
    tmp_path: Path, slurm: dict[str, str], tiny: Path, ragged: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The batch script, launch.sh and the training as they are; only the files lie elsewhere."""
    named = ["--model-name-or-path", str(tiny), "--dataset-name-or-path", str(ragged)]
    run_dir, log, words = tmp_path / "run", tmp_path / "log", [*named, *WORDS.split()]
    options = ("-N1-2", "--gpus-per-node=2", f"--output={log}")
    job = submit(ROOT, slurm, options, "--run-dir", str(run_dir), *words)
    wait_for(run_dir / "metrics.jsonl", 13, 200)
    call(slurm, "scontrol", "update", "NodeName=s2", "State=DRAIN", "Reason=test")
    try:
        call(slurm, "scancel", "--signal=USR1", "--batch", job)
        wait_for_state(slurm, job, "PENDING")
        start_now(slurm, job)
        wait_for(run_dir / "DONE", 0, 200)
        wait_for_end(slurm, job)
    finally:
        call(slurm, "scontrol", "update", "NodeName=s2", "State=RESUME")
    assert "4 CPU ranks (no GPU was found) on 2 hosts: s1 x 2, s2 x 2" in log.read_text()
    assert "SIGUSR1: saving and stopping" in log.read_text()
    assert "2 CPU ranks (no GPU was found) on this machine" in log.read_text()
    sizes = [record["world_size"] for record in steps(run_dir)]
    assert sizes == sorted(sizes, reverse=True) and set(sizes) == {4, 2}
    whole = launch(1, tmp_path / "whole", words, tmp_path / "whole-log")
    assert whole.wait() == 0, whole.text()[-3000:]
    found = difference(run_dir, tmp_path / "whole")
    with capsys.disabled():
        print(f"\n\n2 nodes x 2, preempted after step {sizes.count(4)}, then 1 x 2: {found:.1e}")
    assert found <= 1e-6
