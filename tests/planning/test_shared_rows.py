"""Replicas of several ranks: which are legal, what they cost, when they are chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.planning.test_search import request
from train.config import parse_args
from train.errors import PlanError
from train.planning import Pins, choose, merge_pins, read_ds_config


@pytest.mark.parametrize(("changes", "said"), [
    ({"pins": Pins(sp=3)}, "does not divide the 8 GPUs"),
    ({"pins": Pins(sp=2), "packable": False}, "attention of mistral-7b cannot be packed"),
])  # fmt: skip
def test_replicas_that_cannot_be_are_refused(changes, said):
    with pytest.raises(PlanError, match=said):
        choose(request(**changes))


def test_a_run_may_pin_how_many_ranks_share_a_row_but_no_tensor_or_pipeline_degree():
    words = ["--model-name-or-path", "m", "--dataset-name-or-path", "d", "--pin"]
    auto = read_ds_config(Path("ds_configs/auto.json"))
    assert merge_pins(parse_args([*words, "sp=2"]), auto).sp == 2
    for key in ("tp", "pp"):
        with pytest.raises(PlanError, match=f"{key}=2 cannot be run"):
            merge_pins(parse_args([*words, f"{key}=2"]), auto)
