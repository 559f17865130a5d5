import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from train.config import World, parse_args
from train.errors import CheckpointError, DataError
from train.loop import Outputs
from train.output.console import Console
from train.output.metrics import read_metrics
from train.output.trackers import NoTracker
from train.run import joining, session
from train.run.finishing import _final_checkpoint, _losses
from train.run.inputs import date_of, few_steps, slow_adapter
from train.run.joining import require_same
from train.run.resume import _counting, _require_room, too_long_before
from train.run.session import _restarted

OPENED = {"dataset": "d1", "tokenizer": "t1", "model": "m1"}


@pytest.mark.parametrize(("offload", "told"), [("none", 0), ("optimizer", 1)])
def test_a_compilation_that_may_take_minutes_is_told_before_it_begins(monkeypatch, offload, told):
    said, seen = [], []
    engine = SimpleNamespace(model=SimpleNamespace(notices=()))
    monkeypatch.setattr(session.engines, "start", lambda *_: seen.append(len(said)) or engine)
    plan = SimpleNamespace(plan=SimpleNamespace(offload=offload))
    session.start_engine(
        SimpleNamespace(config=None, model=None), SimpleNamespace(chosen=plan, zero={}), None,
        SimpleNamespace(console=SimpleNamespace(say=said.append)),
    )  # fmt: skip
    assert seen == [told] and all("CPU Adam" in one for one in said)


def test_hosts_that_have_opened_something_else_are_named_with_what_differs():
    require_same([("a", OPENED), ("a", {}), ("b", dict(OPENED)), ("b", {})])
    other = {**OPENED, "dataset": "d2", "model": "m2"}
    with pytest.raises(DataError, match="b has another dataset and another model than a: make"):
        require_same([("a", OPENED), ("b", other)])


def test_ranks_of_one_host_that_have_opened_something_else_are_named_too():
    """As where each rank has a working folder, or a cache, of its own."""
    with pytest.raises(DataError, match="rank 1 on a has another dataset than a: make"):
        require_same([("a", OPENED), ("a", {"dataset": "d2", "tokenizer": "t1"})])


def test_ranks_that_join_compare_all_that_their_hosts_have_opened(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    save_file({"w": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    split = SimpleNamespace(fingerprint="d1")
    data = SimpleNamespace(
        train=split, validation=split, tokenizer=SimpleNamespace(fingerprint="t")
    )
    inputs = SimpleNamespace(
        model=tmp_path, pins=SimpleNamespace(words=lambda: ""), ds=SimpleNamespace(extra={})
    )
    nouns = {"dataset", "tokenizer", "ds_config", "model", "code of anyrank", "set of packages"}
    for noun in sorted(nouns):

        def gather(mine, noun=noun):
            assert set(mine[1]) == nouns
            return [mine, ("far", {**mine[1], noun: "another"})]

        gang = SimpleNamespace(gather=gather)
        monkeypatch.setattr(joining, "connect", lambda world, env, gang=gang: gang)
        with pytest.raises(DataError, match=f"far has another {noun} than "):
            joining.join(inputs, data, World(), {})


def test_a_short_run_is_not_kept_waiting_by_an_evaluation_before_it():
    assert too_long_before(25, 100) == ""
    assert "26 samples are held out, and all steps together have 100" in too_long_before(26, 100)


def early_stop_with(run, steps):
    """--early-stop over a run folder that has the checkpoints of these steps."""
    for step in steps:
        folder = run / f"checkpoints/step_{step:08d}"
        folder.mkdir(parents=True)
        (folder / "COMPLETE").write_text("")
    output = replace(parse_args([]).output, early_stop=1)
    return output, Outputs(Console(True), None, NoTracker(), run)


def test_early_stop_writes_the_best_of_what_is_kept_and_says_so(tmp_path, capsys):
    """A run that was begun without --early-stop has no checkpoint of its best evaluation."""
    losses = {0: 9.0, 5: 1.0, 10: 3.0, 15: 2.0, 20: 2.5}
    lines = [{"step": n, "eval_loss": loss, "eval_tokens": 7} for n, loss in losses.items()]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    output, out = early_stop_with(tmp_path, (10, 15, 20))
    assert _final_checkpoint(output, "held out", out).name == "step_00000015"
    assert "is that after step 15, whose evaluation was the best of 3 (loss 2.000000)" in (
        capsys.readouterr().out
    )
    assert _losses(tmp_path, "held out", 15)[0].endswith(
        "9.0000 before training, 2.0000 after step 15"
    )


def test_evaluations_on_other_rows_are_not_compared(tmp_path, capsys):
    """A run that goes on with another --eval-dataset-name-or-path: 1.0 there says nothing here."""
    found = {(0, "a"): 9.0, (5, "a"): 1.0, (5, "b"): 7.0, (10, "b"): 3.0, (15, "b"): 4.0}
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for (step, rows), loss in found.items():
            line = {"step": step, "eval_loss": loss, "eval_tokens": 7, "eval_data": rows}
            file.write(json.dumps(line) + "\n")
    output, out = early_stop_with(tmp_path, (5, 10, 15))
    assert _final_checkpoint(output, "b", out).name == "step_00000010"
    assert "the best of 3 (loss 3.000000)" in capsys.readouterr().out
    assert _losses(tmp_path, "b", 10) == ("Loss on held-out samples: 3.0000 after step 10",)
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert len(metrics.evals) == 5
    assert not metrics.notice
    assert [one.step for one in _counting(metrics, "b", output, out, 15)] == [5, 10, 15]
    assert "--early-stop: 2 evaluations on other rows do not count" in capsys.readouterr().out


def test_evaluations_that_are_made_again_do_not_count_twice(tmp_path):
    """A run that was killed goes on from its best step: what came after is measured again."""
    lines = [{"step": n, "eval_loss": 1.0 + n, "eval_tokens": 7} for n in (5, 10, 15)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    output, out = early_stop_with(tmp_path, (5,))
    found = _counting(read_metrics(tmp_path / "metrics.jsonl"), "held out", output, out, 5)
    assert [one.step for one in found] == [5]


def test_what_a_killed_start_half_wrote_is_no_fault_of_the_next(tmp_path):
    for number, text in (("0001", '{"da'), ("0002", "[]"), ("0003", '{"date": "2026-01-31"}')):
        (tmp_path / "attempts" / number).mkdir(parents=True)
        (tmp_path / "attempts" / number / "tokenized.json").write_text(text)
    assert date_of(str(tmp_path)) == "2026-01-31"


def test_an_adapter_with_a_whole_models_rate_is_told():
    """As from `--config` of a whole model's run, which names the rate that was its default."""
    named = ["--model-name-or-path", "m", "--dataset-name-or-path", "d"]
    adapter = parse_args([*named, "--use-lora", "--lr", "2e-6"])
    assert "at which an adapter hardly learns" in "".join(slow_adapter(adapter))
    pairs = [*named, "--use-lora", "--objective", "dpo"]
    for words in (named, [*named, "--use-lora"], pairs):
        assert not [*slow_adapter(parse_args(words))]


def test_few_steps_are_told_with_what_makes_more():
    named = ["--model-name-or-path", "m", "--dataset-name-or-path", "d", "--batch-size"]
    one, four = (parse_args([*named, batch]) for batch in "14")
    assert "smaller --batch-size than 4, or more --epochs, makes" in "".join(few_steps(four, 8))
    assert "much: more --epochs make more of them" in "".join(few_steps(one, 2))
    assert not [*few_steps(parse_args([*named, "1", "--max-steps", "3"]), 2)]


def test_a_clock_that_was_put_back_makes_no_pause_of_less_than_nothing():
    job = SimpleNamespace(start=4, total=9, world_size=1)
    lines = ({"time": 90.0, "step": 4}, {"time": 900.0, "step": 4})
    pauses = [_restarted((None,) * 6, line, job, 2, 100.0).pause for line in lines]
    assert pauses == [10.0, 0.0]


def test_room_is_looked_for_on_the_disk_to_which_the_checkpoints_are_a_link(tmp_path, monkeypatch):
    small, run, real = tmp_path / "small", tmp_path / "run", os.statvfs
    small.mkdir()
    run.mkdir()
    (run / "checkpoints").symlink_to(small)
    full = SimpleNamespace(f_bavail=3, f_frsize=1000)
    monkeypatch.setattr(
        os, "statvfs", lambda path: full if Path(path).resolve() == small else real(path)
    )
    config = parse_args(["--model-name-or-path", "m", "--dataset-name-or-path", "d"])
    out = Outputs(Console(False), None, NoTracker(), run)
    with pytest.raises(CheckpointError, match=r"but only 3\.0 kB are free in .*run/checkpoints:"):
        _require_room(12_000, range(10), config, out)
