"""Pipelines: which are legal, what their borders cost, when they are chosen."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.planning.test_search import request
from train.config import parse_args
from train.errors import PlanError
from train.hosts.hostfile import parse
from train.planning import (
    Pins,
    Plan,
    choose,
    find_shape,
    log_lines,
    merge_pins,
    pin_cost,
    read_ds_config,
)
from train.planning.cluster import Device, cluster_of_devices, links_of, links_told
from train.planning.duration import duration
from train.planning.lengths import lengths_of

WORDS = ["--model-name-or-path", "m", "--dataset-name-or-path", "d", "--pin"]


def slow(gigabits: float, **changes):
    """Eight hosts of 4 A100, each with one adapter."""
    found = request(hosts=8, per_host=4, **changes)
    return replace(found, cluster=replace(found.cluster, nic=gigabits * 1e9 / 8))


def test_a_pipeline_is_chosen_where_the_network_is_slow_and_none_where_it_is_not():
    chosen = choose(slow(100)).chosen
    assert chosen.plan.pp > 1 and chosen.plan.zero == 1
    assert f"PP : {chosen.plan.pp}, No TP" in log_lines(choose(slow(100)))[3]
    assert "No PP, No TP" in log_lines(choose(slow(1600)))[3]


def test_what_a_ds_config_pins_away_is_told():
    pinned = slow(25, pins=Pins(zero=3))
    choice = choose(pinned)
    assert choice.chosen.plan.pp == 1
    assert "pp=" in pin_cost(pinned, choice) and "zero=3 cost" in pin_cost(pinned, choice)


def test_every_pipeline_that_is_tried_can_be_run():
    found = choose(slow(100, precision="fp32"))
    pipelines = [c.plan for c in found.candidates if c.plan.pp > 1]
    assert {plan.pp for plan in pipelines} == {2, 4, 8, 16}
    assert {(plan.zero, plan.offload) for plan in pipelines} == {(0, "none"), (1, "none")}
    for less in ({"divisible": False}, {"packable": False}, {"pins": Pins(offload="optimizer")}):
        assert {c.plan.pp for c in choose(slow(100, **less)).candidates} == {1}


@pytest.mark.parametrize(("changes", "said"), [
    ({"pins": Pins(pp=5)}, "divide the 32 GPUs: .*, pp may be 1 or 2 or 4 or 8 or 16 or 32"),
    ({"pins": Pins(pp=2), "packable": False}, "attention cannot be packed: leave it out"),
    ({"pins": Pins(pp=2), "divisible": False}, "parts cannot be told apart: leave it out"),
    ({"pins": Pins(pp=2, zero=2)}, "pp goes with zero=0 or 1"),
    ({"pins": Pins(pp=2, offload="optimizer")}, "pp=2, offload=optimizer contradict"),
])  # fmt: skip
def test_pipelines_that_cannot_be_are_refused(changes, said):
    with pytest.raises(PlanError, match=said):
        choose(slow(100, **changes))


def test_a_pin_is_compared_with_the_ds_config_before_anything_is_loaded():
    stage3 = read_ds_config(Path("ds_configs/zero3.json"))
    with pytest.raises(PlanError, match=r"pp=2, zero=3 contradict each other.*auto.json"):
        merge_pins(parse_args([*WORDS, "pp=2"]), stage3)
    auto = read_ds_config(Path("ds_configs/auto.json"))
    assert merge_pins(parse_args([*WORDS, "pp=2"]), auto).pp == 2


@pytest.mark.parametrize("pin", ["pp=2", "tp=4", "sp=2", "replicas=2+1"])
def test_pairs_are_not_divided_and_the_reason_is_not_the_models(pin):
    """It was said that the attention of a Mistral cannot be packed, after its data were opened."""
    auto = read_ds_config(Path("ds_configs/auto.json"))
    pairs = [*WORDS[:-1], "--objective", "dpo", "--pin"]
    with pytest.raises(PlanError, match=f"--pin {re.escape(pin)} has several ranks .* own pairs"):
        merge_pins(parse_args([*pairs, pin]), auto)
    assert merge_pins(parse_args([*pairs, "pp=1", "replicas=1+1"]), auto).pp == 1


def test_a_table_of_positions_is_named_as_what_cannot_be_cut():
    learned = slow(100, pins=Pins(pp=2))
    learned = replace(learned, shape=replace(learned.shape, positions=1024))
    with pytest.raises(PlanError, match="'s table of positions is of no stage"):
        choose(learned)


def test_stages_within_a_host_send_as_slowly_as_those_at_its_edge():
    lengths = lengths_of(None, 1024)

    def waited(pp: int) -> float:
        """What a slow network costs a micro-batch."""
        micros = 8 * pp
        plan = Plan(1, 1024, dp=32 // pp, pp=pp, accumulation=micros)
        found = [duration(slow(gigabits), plan, lengths).pipeline for gigabits in (25, 1600)]
        return (found[0] - found[1]) / (micros + pp)

    # One stage a host has four ranks that share its adapter, one of two stages has two.
    assert waited(8) == pytest.approx(2 * waited(16), rel=0.01)
    assert waited(16) > 0.005


def test_a_run_plans_with_the_links_that_its_hostfile_states():
    told = links_told(parse("#: nic=0.1Gb gpu=MI210\na slots=2\nb slots=2\n").hardware)
    assert list(told.values()) == ["nic=0.1Gb"] and links_told({"gpu": "MI210"}) == {}
    devices = [Device(node, "cpu", 2**33, 2**34, share=0.5) for node in (0, 0, 1, 1)]

    def chosen(env: dict[str, str]) -> Plan:
        cluster = cluster_of_devices(devices, links=links_of(env))
        small = find_shape("layers=4,hidden=192,heads=4,ffn=512,vocab=4096")
        return choose(
            request(shape=small, cluster=cluster, precision="fp32", batch_size=8, block_size=256)
        ).chosen.plan

    assert chosen(told).pp > 1
    assert chosen({}).pp == 1
    fast = cluster_of_devices(devices, links={"nic": "1Gb", "link": "9GB"})
    assert (fast.nic, fast.gpu.link) == (2.5e8, 9e9)
