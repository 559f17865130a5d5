import math
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from tests.support.fakes import FakeEngine, FakeSplit
from train.config import World, parse_args
from train.data.feed import Placement, step_batch
from train.data.pack import Load
from train.errors import NonFiniteError
from train.launch.stopping import StopRequests
from train.loop import NoSaver, Outputs, TrainingJob, counted
from train.loop import fit as fit_with
from train.output.console import Console
from train.output.metrics import read_metrics
from train.output.record import EvalRecord, open_run_folder
from train.output.trackers import NoTracker
from train.planning.balance import Pace
from train.planning.plan import Plan
from train.run.balancing import rebalanced

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


def test_a_replica_that_is_slow_as_measured_gets_less_work_and_every_step_is_the_same(
    tmp_path, capsys
):
    slow = [Pace(2.0, 1.0), Pace(1.0, 2.0), Pace(2.0, 1.0)]
    good = [Pace(2.0, 1.0), Pace(2.0, 0.5), Pace(2.0, 1.0)]
    alone = FakeEngine()
    records = fit(alone, replace(job(), total=50), outputs(tmp_path / "alone"))
    parts, equal = [], Placement(replica=0, replicas=3, capacity=200)
    moved = replace(equal, loads=(Load(200, 2.0), Load(200, 1.0), Load(200, 2.0)))
    for replica in range(3):
        engine = FakeEngine(measured=[slow, good])
        own = replace(
            job(), total=50, placement=replace(equal, replica=replica),
            balanced=partial(rebalanced, Plan(zero=1, micro_tokens=200, dp=3)),
        )  # fmt: skip
        at = outputs(tmp_path / "shared")
        fit(engine, own, at if replica == 0 else replace(at, console=Console(False)))
        parts.append(engine.seen)
    assert len(records) == 50
    for step, whole in enumerate(alone.seen):
        assert sorted(i for part in parts for i in part[step]) == list(whole)
        placed = replace(moved if 21 <= step < 41 else equal, replica=1)
        micros = step_batch(own.train, 0, 12, step, placed).micros
        assert list(parts[1][step]) == sorted({int(i) for m in micros for i in m.samples if i >= 0})
    work = [sum(int(LENGTHS[i]) for i in step) for step in parts[1]]
    assert np.mean(work[21:41]) < 0.75 * np.mean(work[:21])
    printed = capsys.readouterr().out
    assert "As measured, rank 1 at 0.50 of the fastest's speed" in printed
    assert "work for its own from step 22 on" in printed
    assert "equally fast again" in printed and "from step 42 on" in printed


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


class Noted:
    """A saver that notes what it is asked to keep."""

    def __init__(self):
        self.kept, self.models = [], []

    def save(self, step, best=None):
        self.kept.append((step, best))

    def save_model(self, step):
        self.models.append(step)

    def wait(self):
        pass

    def failed(self):
        return False


class Scripted(FakeEngine):
    """Finds the given losses at its evaluations."""

    losses = (3.0, 2.0, 2.5, 2.0, 1.0)

    def evaluate(self, batches):
        count = super().evaluate(batches)[1]
        first, *self.losses = self.losses
        return first * count, count


def stopped(path, *words, evals=()):
    saver, one = Noted(), job("--eval-step", "2", "--early-stop", "2", *words)
    out, stop = outputs(path), StopRequests(World(), sys.exit)
    return saver, fit_with(
        Scripted(), replace(one, evals=evals, start=2 * len(evals)), out, saver, stop
    )


def test_early_stop_ends_after_so_many_evaluations_without_a_better_one(tmp_path, capsys):
    saver, records = stopped(tmp_path)
    assert len(records) == 8  # 2.0 again is no better
    assert saver.kept == [(2, 2), (4, 4), (8, 4)]  # each better one, and the end beside the best
    assert "--early-stop 2: so many evaluations are no better than that after step 4" in (
        capsys.readouterr().out
    )


def test_early_stop_counts_the_evaluations_of_earlier_starts(tmp_path):
    evals = (EvalRecord(2, 1.5, 7), EvalRecord(4, 2.5, 7))
    saver, records = stopped(tmp_path / "a", evals=evals)
    assert [record.step for record in records] == [5, 6]
    assert saver.kept == [(6, 2)]
    evals += (EvalRecord(6, 1.5, 7),)
    assert stopped(tmp_path / "b", evals=evals)[1] == ()


def test_evaluations_count_from_the_best_that_is_kept_the_same_after_every_start():
    evals = [EvalRecord(step, loss, 7) for step, loss in enumerate((1.0, 3.0, 2.0, 2.5), 1)]
    assert counted(evals, [1, 4]) == tuple(evals)
    assert counted(evals, [2, 3, 4]) == tuple(evals[1:])  # the best one's model is gone
    assert counted(evals[:3], [2, 3]) == tuple(evals[1:3])
    assert counted(evals, [4]) == tuple(evals[3:])
    assert counted(evals, []) == ()


def test_save_only_model_leaves_no_checkpoint_at_the_end(tmp_path):
    saver = Noted()
    words = ["--save-only-model", "--save-step", "4"]
    fit_with(FakeEngine(), job(*words), outputs(tmp_path / "a"), saver,
             StopRequests(World(), sys.exit))  # fmt: skip
    assert (saver.kept, saver.models) == ([(4, None), (8, None)], [10])
    saver, _ = stopped(tmp_path / "b", "--save-only-model")
    assert (saver.kept, saver.models) == ([(2, 2), (4, 4)], [])  # the best is there


def test_a_second_start_gets_its_own_attempt_and_no_step_stands_twice(tmp_path):
    fit(FakeEngine(), job(), outputs(tmp_path))
    (tmp_path / "DONE").write_text("x")
    folder = open_run_folder(tmp_path)
    folder.rewind(6)
    assert folder.attempt.name == "0002"
    assert not (tmp_path / "DONE").exists()
    steps = read_metrics(tmp_path / "metrics.jsonl").steps
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
