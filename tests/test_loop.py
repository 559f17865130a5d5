import math
import sys
from dataclasses import replace

import numpy as np
import pytest

from tests.support.fakes import FakeEngine, FakeSplit
from train.config import World, parse_args
from train.data.feed import Placement
from train.errors import NonFiniteError
from train.launch.stopping import StopRequests
from train.loop import NoSaver, Outputs, TrainingJob
from train.loop import fit as fit_with
from train.output.console import Console
from train.output.metrics import read_metrics
from train.output.record import open_run_folder
from train.output.trackers import NoTracker

LENGTHS = np.random.default_rng(0).integers(2, 30, 60).astype(np.int32)


def job(*words: str) -> TrainingJob:
    named = ["--model-name-or-path", "m", "--dataset-name-or-path", "d"]
    return TrainingJob(
        config=parse_args([*named, "--batch-size", "12", "--lr", "0.2", *words]),
        train=FakeSplit(LENGTHS),
        validation=FakeSplit(LENGTHS[:7]),
        placement=Placement(replica=0, replicas=1, capacity=64),
        start=0,
        total=10,
        plan_digest="abc",
        world_size=1,
        mfu=lambda share, seconds: None,
    )


def fit(engine, job, out):
    return fit_with(engine, job, out, NoSaver(), StopRequests(World(), sys.exit))


def outputs(path) -> Outputs:
    folder = open_run_folder(path)
    return Outputs(Console(True, folder.log), folder, NoTracker(), path)


def test_a_run_leaves_one_line_per_step_and_a_last_evaluation(tmp_path, capsys):
    records = fit(FakeEngine(), job("--eval-step", "4"), outputs(tmp_path))
    found = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in found.steps] == list(range(1, 11))
    assert [line["step"] for line in found.evals] == [4, 8, 10]
    assert sum(r.loss for r in records[-3:]) < 3 * records[0].loss
    assert records[0].padded_tokens == 12 * 1024
    printed = capsys.readouterr().out
    assert "| INFO | [Step 1/10] | Loss: " in printed
    assert "tokens/sec" in printed
    assert (tmp_path / "attempts/0001/log.txt").read_text() == printed


def test_the_console_keeps_to_the_interval_but_metrics_do_not(tmp_path, capsys):
    fit(FakeEngine(), job("--log-interval", "4"), outputs(tmp_path))
    printed = capsys.readouterr().out
    assert [n for n in range(1, 11) if f"[Step {n}/10]" in printed] == [4, 8, 10]
    assert len(read_metrics(tmp_path / "metrics.jsonl").steps) == 10


def test_replicas_together_see_each_sample_of_a_step_once(tmp_path):
    alone = FakeEngine()
    fit(alone, job(), Outputs(Console(False), None, NoTracker(), tmp_path))
    parts = []
    for replica in range(3):
        one = replace(job(), placement=Placement(replica=replica, replicas=3, capacity=64))
        engine = FakeEngine()
        fit(engine, one, Outputs(Console(False), None, NoTracker(), tmp_path))
        parts.append(engine.seen)
    for step, whole in enumerate(alone.seen):
        assert sorted(i for part in parts for i in part[step]) == list(whole)


def test_a_step_that_is_not_finite_ends_the_run_before_it_is_recorded(tmp_path):
    with pytest.raises(NonFiniteError, match="not finite in samples"):
        fit(FakeEngine(bad_samples=frozenset({5})), job(), outputs(tmp_path))
    assert len(read_metrics(tmp_path / "metrics.jsonl").steps) < 10


def test_an_evaluation_that_is_not_finite_ends_the_run_before_that_step_is_saved(tmp_path):
    class Diverged(FakeEngine):
        def evaluate(self, batches):
            return math.nan, super().evaluate(batches)[1]

    with pytest.raises(NonFiniteError, match="evaluation after step 10 is not finite"):
        fit(Diverged(), job(), outputs(tmp_path))
    assert not read_metrics(tmp_path / "metrics.jsonl").evals


def test_a_second_start_gets_its_own_attempt_and_no_step_stands_twice(tmp_path):
    fit(FakeEngine(), job(), outputs(tmp_path))
    (tmp_path / "DONE").write_text("x")
    folder = open_run_folder(tmp_path)
    folder.rewind(6)
    assert folder.attempt.name == "0002"
    assert not (tmp_path / "DONE").exists()
    steps = read_metrics(tmp_path / "metrics.jsonl").steps
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
