import json
from dataclasses import replace

import pytest

from train.config import parse_args
from train.errors import DataError
from train.loop import Outputs
from train.output.console import Console
from train.output.trackers import NoTracker
from train.run.resume import too_long_before
from train.run.session import _final_checkpoint, _losses, require_same

OPENED = {"dataset": "d1", "tokenizer": "t1", "model": "m1"}


def test_hosts_that_have_opened_the_same_may_train():
    require_same([("a", OPENED), ("a", {}), ("b", dict(OPENED)), ("b", {})])


def test_hosts_that_have_opened_something_else_are_named_with_what_differs():
    other = {**OPENED, "dataset": "d2", "model": "m2"}
    with pytest.raises(DataError, match="b has another dataset and another model than a: make"):
        require_same([("a", OPENED), ("b", other)])


def test_ranks_of_one_host_that_have_opened_something_else_are_named_too():
    """As where each rank has a working folder, or a cache, of its own."""
    with pytest.raises(DataError, match="rank 1 on a has another dataset than a: make"):
        require_same([("a", OPENED), ("a", {"dataset": "d2", "tokenizer": "t1"})])


def test_a_short_run_is_not_kept_waiting_by_an_evaluation_before_it():
    assert too_long_before(25, 100) == ""
    assert "26 samples are held out, and all steps together have 100" in too_long_before(26, 100)


def test_early_stop_writes_the_best_of_what_is_kept_and_says_so(tmp_path, capsys):
    """A run that was begun without --early-stop has no checkpoint of its best evaluation."""
    losses = {0: 9.0, 5: 1.0, 10: 3.0, 15: 2.0, 20: 2.5}
    lines = [{"step": n, "eval_loss": loss, "eval_tokens": 7} for n, loss in losses.items()]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in (10, 15, 20):
        folder = tmp_path / f"checkpoints/step_{step:08d}"
        folder.mkdir(parents=True)
        (folder / "COMPLETE").write_text("")
    out = Outputs(Console(True), None, NoTracker(), tmp_path)
    output = replace(parse_args([]).output, early_stop=1)
    assert _final_checkpoint(output, out).name == "step_00000015"
    assert "is that after step 15, whose evaluation was the best of 3 (loss 2.000000)" in (
        capsys.readouterr().out
    )
    assert _losses(tmp_path, 15)[0].endswith("9.0000 before training, 2.0000 after step 15")
