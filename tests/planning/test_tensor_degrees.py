"""Tensor ranks: which numbers are legal, what they send and hold, when they are chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.planning.test_pipelines import slow
from tests.planning.test_search import request
from train.config import LoraConfig
from train.errors import PlanError
from train.planning import Implementation, Pins, Plan, built_in, choose, log_lines
from train.planning.duration import duration
from train.planning.lengths import lengths_of
from train.planning.models import written
from train.planning.states import counts_of

FUSED = replace(built_in("phi-4"), fused_qkv=True)


def test_what_is_tried_is_inside_hosts_and_has_as_many_heads_on_each_rank():
    tried = {c.plan.tp for c in choose(request()).candidates}
    assert tried == {1, 2, 4, 8}
    assert {c.plan.tp for c in choose(slow(100)).candidates} == {1, 2, 4}
    assert {c.plan.tp for c in choose(request(shape=FUSED)).candidates} == {1, 2}
    for other in ("gpt-neox-20b",):
        assert {c.plan.tp for c in choose(request(shape=built_in(other))).candidates} == {1}
    for less in ({"shardable": False}, {"pins": Pins(tp=1)}, {"pins": Pins(offload="optimizer")}):
        assert {c.plan.tp for c in choose(request(**less)).candidates} == {1}
    both = {(c.plan.tp, c.plan.pp) for c in choose(slow(100)).candidates}
    assert {(2, 2), (4, 8), (1, 4)} <= both


@pytest.mark.parametrize(("changes", "said"), [
    ({"pins": Pins(tp=8), "shape": built_in("qwen2.5-7b")}, "28 heads.*pin one of 1, 2, 4"),
    ({"pins": Pins(tp=4), "shape": FUSED}, "10 key heads.*pin one of 1, 2 "),
    ({"pins": Pins(tp=8), "hosts": 2, "per_host": 4}, "hosts of 4 GPUs.*pin one of 1, 2, 4"),
    ({"pins": Pins(tp=2), "shardable": False}, "only runs of gemma, .*pin one of 1 "),
    ({"pins": Pins(tp=2, hpz=2)}, "tp=2, hpz=2 contradict"),
    ({"pins": Pins(tp=2), "quantize": "nf4", "lora": LoraConfig(8, 16, 0.0)}, "weights in nf4"),
])  # fmt: skip
def test_tensor_ranks_that_cannot_be_are_refused_with_those_that_can(changes, said):
    with pytest.raises(PlanError, match=said):
        choose(request(**changes))


def test_a_layer_that_is_recomputed_sends_five_sums_and_in_other_peoples_runs_six():
    lengths = lengths_of(None, 1024)
    for other, times in ((None, 5 / 4), (Implementation(), 6 / 4)):
        asked = request(implementation=other)
        spent = [
            duration(asked, Plan(0, 1024, mode, dp=1, tp=8, accumulation=4), lengths).communication
            for mode in ("none", "full")
        ]
        assert spent[1] / spent[0] == pytest.approx(times)


def test_each_rank_has_its_part_and_whole_keys_where_no_number_of_ranks_divides_their_heads():
    shape = written("layers=2,hidden=64,heads=8,kv_heads=2,ffn=256,vocab=1000")
    pair, four = (counts_of(shape, 0, tp, 1).trained for tp in (2, 4))
    assert pair == shape.parameters / 2
    assert four == shape.parameters / 4 + 2 * 2 * 64 * 16 * 3 / 4
    # Of an adapter one half of each pair is whole, on the side that is not divided.
    halves = shape.adapter_parameters(4, 2)
    assert shape.adapter_parameters(4) / 2 < halves < shape.adapter_parameters(4)


def test_tensor_ranks_are_chosen_where_they_pay_and_the_log_says_so():
    pins = Pins(pp=1, sp=1, recompute="full", offload="none")
    choice = choose(request(block_size=2**17, batch_size=8, pins=pins))
    assert choice.chosen.plan.tp > 1
    assert f"No PP, TP : {choice.chosen.plan.tp}," in log_lines(choice)[3]
    assert "No TP" in log_lines(choose(slow(1600)))[3]
