"""Requests to stop, and launchers that die, under the real DeepSpeed launcher."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.chaos.launches import Launch, launch, parent, steps, wait_for_step
from train.checkpoint.folder import complete, step_of

WORDS = "--batch-size 12 --block-size 96 --max-steps 400 --lr 2e-3 "
WORDS += "--lr-schedule linear --precision fp32 --ds-config ds_configs/auto.json "
WORDS += "--pin micro_tokens=400"


@pytest.fixture(scope="module")
def words(tiny, ragged) -> list[str]:
    named = ["--model-name-or-path", str(tiny), "--dataset-name-or-path", str(ragged)]
    return [*named, *WORDS.split()]


def finish(started: Launch) -> int:
    code = started.wait()
    assert started.orphans() == []
    return code


@pytest.mark.parametrize(
    ("number", "whom"),
    [(signal.SIGINT, "one rank"), (signal.SIGTERM, "the group"), (signal.SIGTERM, "the runner")],
)
def test_a_signal_to_a_rank_or_the_launcher_or_all_saves_a_checkpoint_and_leaves_nobody(
    words, tmp_path, number, whom
):
    """The runner ends at once by a signal; the launcher below it gives each rank 30 s."""
    started = launch(2, tmp_path / "run", [*words, "zero=2"], tmp_path / "log")
    wait_for_step(started, 3)
    if whom == "one rank":
        os.kill(started.ranks()[1], number)
    elif whom == "the group":
        os.killpg(started.process.pid, number)
    else:
        started.process.send_signal(number)
    code = finish(started)
    done, saved = steps(tmp_path / "run")[-1]["step"], complete(tmp_path / "run")
    assert code == (75 if whom == "one rank" else -number)
    assert "stopped on request" in started.text()
    assert step_of(saved[0]) == done < 400


@pytest.mark.parametrize(("victim", "ranks"), [("runner", 1), ("launcher", 2)])
def test_no_rank_of_a_checkpointed_run_outlives_its_launcher(words, tmp_path, victim, ranks):
    started = launch(ranks, tmp_path / "run", [*words, "zero=2"], tmp_path / "log")
    wait_for_step(started, 2)
    target = started.process.pid
    if victim == "launcher":
        target = parent(started.ranks()[0])
        assert target != started.process.pid
    os.kill(target, signal.SIGKILL)
    assert started.orphans(patience=10) == []


def test_a_stop_before_the_first_checkpoint_ends_at_once_with_75(words, tmp_path):
    started = launch(2, tmp_path / "run", [*words, "zero=2"], tmp_path / "log")
    while len(started.ranks()) < 2 or "[info] [1/8]" not in started.text():
        time.sleep(0.05)
    os.kill(started.ranks()[0], signal.SIGTERM)
    began = time.monotonic()
    assert finish(started) == 75
    assert time.monotonic() - began < 15
    assert "Stopped on request (SIGTERM): nothing was lost" in started.text()
