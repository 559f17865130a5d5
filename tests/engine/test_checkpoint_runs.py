"""Runs as a user starts them, killed and stopped and resumed under the real DeepSpeed launcher."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.chaos.launches import ROOT, Launch, difference, launch, metrics, steps, wait_for_step
from tests.support.ranks import run_main
from train.checkpoint.folder import complete, step_of

WORDS = "--batch-size 12 --block-size 96 --max-steps 40 --save-step 10 --eval-step 20 --lr 2e-3 "
WORDS += "--lr-schedule linear --precision fp32 --ds-config ds_configs/auto.json "
WORDS += "--pin micro_tokens=400"


@pytest.fixture(scope="module")
def words(tiny, ragged) -> list[str]:
    named = ["--model-name-or-path", str(tiny), "--dataset-name-or-path", str(ragged)]
    return [*named, *WORDS.split()]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory) -> Path:
    """The run that nothing interrupts, on one rank."""
    folder = tmp_path_factory.mktemp("whole")
    done = run_main(["--run-dir", str(folder / "run"), *words, "zero=2"], ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "run" / "DONE").exists()
    return folder / "run"


def finish(started: Launch) -> int:
    code = started.wait()
    assert started.orphans() == []
    return code


def test_a_checkpointed_run_killed_and_stopped_at_3_and_2_ranks_ends_at_1_as_if_nothing_was(
    words, whole, tmp_path, capsys
):
    run, log = tmp_path / "run", tmp_path / "log"
    first = launch(3, run, [*words, "zero=3"], log)
    wait_for_step(first, 17)
    os.kill(first.ranks()[2], signal.SIGKILL)
    assert finish(first) not in (0, 75)
    killed_at = steps(run)[-1]["step"]
    assert step_of(complete(run)[0]) == 10

    second = launch(2, run, [*words, "zero=1"], log)
    wait_for_step(second, 21) if killed_at < 21 else wait_for_attempt(run, 2)
    (run / "STOP").touch()
    assert finish(second) == 75
    assert not (run / "STOP").exists()
    stopped_at = step_of(complete(run)[0])
    assert steps(run)[-1]["step"] == stopped_at

    third = run_main(["--run-dir", str(run), *words, "zero=2"], ROOT)
    assert third.returncode == 0, third.stderr
    assert (run / "DONE").exists()
    found = difference(run, whole)
    with capsys.disabled():
        print(f"\n\n3 ranks killed at step {killed_at}, resumed from 10 on 2 ranks, stopped after "
              f"{stopped_at} (exit 75), resumed on 1: 40 steps, each once, largest relative "
              f"difference of a loss {found:.1e}")  # fmt: skip
    assert found <= 1e-6
    assert {line["world_size"] for line in steps(run)} == {3, 2, 1}
    assert (
        "Resuming from step_00000010, saved on 3 ranks with ZeRO 3; now 2 ranks with ZeRO 1"
        in second.text()
    )
    wanted = f"Resuming from step_{stopped_at:08d}, saved on 2 ranks with ZeRO 1; now 1 rank"
    assert wanted in third.stdout


def wait_for_attempt(run: Path, number: int) -> None:
    while not (run / "attempts" / f"{number:04d}").exists():
        time.sleep(0.05)


def test_metrics_of_the_uninterrupted_run_hold_its_evaluations(whole):
    assert [line["step"] for line in metrics(whole) if "eval_loss" in line] == [0, 20, 40]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("--batch-size 16", "another batch size (12, now 16)"),
        ("--max-steps 30", "is at step 40, but this run ends after step 30"),
        ("--use-lora", "another LoRA shape (none, now r 16 alpha 32)"),
    ],
)
def test_a_run_that_may_not_resume_ends_with_2_and_one_sentence(
    words, whole, tmp_path, changed, said
):
    shutil.copytree(whole, tmp_path / "run")
    named = ["--run-dir", str(tmp_path / "run")]
    done = run_main([*named, *words, "zero=2", *changed.split()], ROOT)
    assert done.returncode == 2
    assert done.stderr.count("[error]") == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(steps(tmp_path / "run")) == 40, "nothing of the run was touched"


def test_resume_must_finds_nothing_and_says_so(words, tmp_path):
    named = ["--run-dir", str(tmp_path / "run")]
    done = run_main([*named, *words, "zero=2", "--resume", "must"], ROOT)
    assert done.returncode == 2
    assert "[error] --resume must found no checkpoint in" in done.stderr
