import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from train.checkpoint.identity import (
    RESUME_INVARIANTS,
    RunFingerprint,
    changes,
    meaning,
    refuse_beyond_end,
    refuse_other_run,
)
from train.errors import CheckpointError
from train.hosts.shared_folder import sees

FOLDER = Path("run/checkpoints/step_00000020")
IDENTITY = {
    "model": {"layers": 2, "hidden": 48}, "config": {"rope_theta": 1e4},
    "adapter": None, "objective": "sft", "base": None, "block_size": 96, "loss_on": None,
    "tokenizer": "t1", "dataset": "d1", "batch_size": 12, "seed": 0,
}  # fmt: skip
TERMS = {"ranks": 2, "plan": {"zero": 3}, "precision": "fp32", "lr": 1e-3, "max_steps": None}
THERE = RunFingerprint(IDENTITY, TERMS)


def own(**changed) -> RunFingerprint:
    return RunFingerprint({**IDENTITY, **changed}, TERMS)


def refusal(**changed) -> str:
    with pytest.raises(CheckpointError) as caught:
        refuse_other_run(THERE, own(**changed), FOLDER)
    return str(caught.value)


def test_everything_that_must_be_equal_is_known_by_name():
    assert set(IDENTITY) == set(RESUME_INVARIANTS)
    refuse_other_run(THERE, own(), FOLDER)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"batch_size": 16}, "another batch size (12, now 16): give the same --batch-size"),
        ({"seed": 1}, "another seed (0, now 1): give the same --seed"),
        ({"model": {"layers": 3, "hidden": 48}}, "another model shape (layers 2, now 3): "),
        ({"config": {"rope_theta": 5}}, "model configuration (rope_theta 10000.0, now 5): "),
        ({"adapter": {"r": 8, "alpha": 16}}, "another LoRA shape (none, now r 8 alpha 16): "),
        (
            {"objective": "dpo", "base": "b2", "dataset": "d2"},
            "a run with another objective (sft, now dpo): give the same --objective, or another",
        ),
        ({"adapter": {"r": 8}, "base": "b2"}, "another LoRA shape (none, now r 8): give the same"),
        ({"base": "b2"}, "another frozen base model (none, now b2): "),
        ({"loss_on": "all"}, "another loss mask (none, now all): give the same --loss-on"),
        ({"dataset": "d2"}, "another dataset (d1, now d2): give the same --dataset-name-or-path"),
        ({"tokenizer": "t2"}, "another tokenizer (t1, now t2): give the same --tokenizer"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_the_difference(changed, said):
    text = refusal(**changed)
    assert said in text
    assert text.endswith(", or another --run-dir")
    assert len(re.findall(r"[.!?] ", text)) == 0, "one sentence"


def test_a_dataset_that_differs_because_the_block_size_does_is_not_named_as_well():
    text = refusal(block_size=64, dataset="d2", seed=3)
    assert "another block size (96, now 64) and another seed (0, now 3)" in text
    assert "dataset (" not in text


def test_an_index_that_lacks_a_fact_is_refused():
    bare = replace(THERE, must_match={k: v for k, v in IDENTITY.items() if k != "dataset"})
    with pytest.raises(CheckpointError, match=r"dataset \(none, now d1\)"):
        refuse_other_run(bare, own(), FOLDER)


def test_what_older_checkpoints_do_not_say_is_not_compared():
    bare = replace(THERE, must_match={k: v for k, v in IDENTITY.items() if k != "config"})
    refuse_other_run(bare, own(), FOLDER)
    assert list(changes(TERMS, {**TERMS, "evaluation_data": "e2"})) == []
    assert list(changes({"evaluation_data": "e1"}, {"evaluation_data": "e2"})) == [
        "evaluation data was e1, is e2"
    ]


def test_a_model_of_another_name_is_the_same_model():
    there = replace(THERE, must_match={**IDENTITY, "model": {"name": "a/b", "layers": 2}})
    here = replace(THERE, must_match={**IDENTITY, "model": {"name": "c", "layers": 2}})
    refuse_other_run(there, here, FOLDER)
    other = replace(THERE, must_match={**IDENTITY, "model": {"name": "a/b", "layers": 3}})
    with pytest.raises(CheckpointError, match="another model shape"):
        refuse_other_run(there, other, FOLDER)


def test_what_a_config_says_of_generation_is_no_part_of_a_step():
    said = {"rope_theta": 1e4, "eos_token_id": 2, "transformers_version": "5", "dtype": "float32"}
    assert meaning(said) == {"rope_theta": 1e4}


def test_a_checkpoint_beyond_the_end_is_refused_and_one_at_the_end_is_not():
    refuse_beyond_end(20, 20, FOLDER)
    with pytest.raises(CheckpointError, match="at step 20, but this run ends after step 19: raise"):
        refuse_beyond_end(20, 19, FOLDER)


def test_what_may_change_is_told_and_the_plan_is_not():
    now = {**TERMS, "ranks": 3, "plan": {"zero": 1}, "lr": 2e-3, "max_steps": 40}
    assert list(changes(TERMS, now)) == [
        "lr was 0.001, is 0.002",
        "max steps was none, is 40",
    ]


def test_a_file_that_appears_late_is_seen_and_one_that_never_does_is_not(tmp_path):
    began = time.monotonic()
    assert not sees(tmp_path / "never", patience=0.3)
    assert time.monotonic() - began < 2
    (tmp_path / "there").write_text("")
    assert sees(tmp_path / "there", patience=0)
