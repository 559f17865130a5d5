"""A real run that is given other numbers of ranks while it trains, stopped, and gone on with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.launches import ROOT, difference, steps
from tests.launch.test_supervise import left_of, wait_for_step
from tests.support.ranks import run_main
from train.output.metrics import PHASES, read_metrics

WORDS = (
    "--batch-size 24 --block-size 96 --lr 1e-4 --precision fp32 --ds-config ds_configs/auto.json"
)


def anyrank(*words: str) -> str:
    line = [sys.executable, "-P", "-m", "train.cli", *words]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def launcher(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-P", "-m", "train.launch", *words]
    with log.open("ab") as file:
        return subprocess.Popen(line, cwd=ROOT, stdout=file, stderr=file, env=os.environ)


def test_two_then_three_then_one_rank_make_the_curve_of_an_uninterrupted_run(
    tiny: Path, ragged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    named = ["--model-name-or-path", str(tiny), "--dataset-name-or-path", str(ragged)]
    words = [*named, *WORDS.split(), "--max-steps", "100000"]
    process = launcher(["2", "--run-dir", str(run), *words], log)
    try:
        wait_for_step(run, 2, patience=120)
        told = [anyrank("resize", str(run), n) for n in ("3", "1")]
        anyrank("stop", str(run))
        assert process.wait(60) == 75, log.read_text()[-3000:]
    finally:
        process.kill()
    assert left_of(run) == []
    last = steps(run)[-1]["step"]
    # The run's own words, read from its folder, and one over them.
    again = launcher(["1", "--run-dir", str(run), "--max-steps", str(last + 2)], log)
    assert again.wait(200) == 0, log.read_text()[-3000:]
    made = steps(run)
    assert [line["step"] for line in made] == list(range(1, last + 3))
    sizes = [line["world_size"] for line in made]
    assert list(dict.fromkeys(sizes)) == [2, 3, 1]
    restarts = read_metrics(run / "metrics.jsonl").restarts
    assert [line["world_size"] for line in restarts] == [3, 1, 1]
    assert [line["lost"] for line in restarts] == [0, 0, 0]
    for line in restarts[:2]:
        assert sum(line[name] for name in PHASES) == pytest.approx(line["pause"])
        assert line["imports"] == 0.0, "they were made while the ranks before trained"
    words = ["--run-dir", str(tmp_path / "whole"), *named, *WORDS.split()]
    whole = run_main([*words, "--max-steps", str(last + 2)], ROOT)
    assert whole.returncode == 0, whole.stderr[-3000:]
    found = difference(run, tmp_path / "whole")
    with capsys.disabled():
        print(f"\n\n2, 3, 1, 1 ranks over {last + 2} steps, each once: largest relative difference "
              f"of a loss {found:.1e}\n{''.join(told)}")  # fmt: skip
        for line in restarts:
            parts = ", ".join(f"{name} {line[name] or 0:.1f}" for name in PHASES)
            print(f"{line['world_size']} ranks from step {line['step']}: {parts}")
    assert found <= 1e-6
