"""Replicas of several ranks: which are legal, what they cost, when they are chosen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.planning.test_search import request
from train.config import parse_args
from train.data.pack import pack
from train.errors import PlanError
from train.planning import Pins, Plan, choose, log_lines, merge_pins, read_ds_config
from train.planning.cluster import Device, cluster_of_devices
from train.planning.explain import describe_speeds
from train.planning.hardware import find_gpu
from train.planning.lengths import busiest_tokens, lengths_of
from train.planning.memory import footprint
from train.planning.pins import read_pins
from train.planning.shares import Share, describe_shares, shares_of


def ragged(count: int, block: int = 4096) -> list[int]:
    drawn = np.exp(np.random.default_rng(0).normal(5.2, 1.0, count)).astype(int)
    return np.clip(drawn, 8, block).tolist()


@pytest.mark.parametrize(("changes", "said"), [
    ({"pins": Pins(sp=3)}, r"does not divide the 8 GPUs: .*, or replicas=4\+4"),
    ({"pins": Pins(sp=2), "packable": False}, "attention of mistral-7b cannot be packed"),
])  # fmt: skip
def test_replicas_that_cannot_be_are_refused(changes, said):
    with pytest.raises(PlanError, match=said):
        choose(request(**changes))


def test_a_run_may_pin_how_many_ranks_share_a_row_or_divide_the_matrices():
    words = ["--model-name-or-path", "m", "--dataset-name-or-path", "d", "--pin"]
    auto = read_ds_config(Path("ds_configs/auto.json"))
    assert merge_pins(parse_args([*words, "sp=2"]), auto).sp == 2
    assert merge_pins(parse_args([*words, "tp=2"]), auto).tp == 2


@pytest.mark.parametrize("replicas", [8, 32, 64, 256])
def test_the_busiest_replica_is_foreseen_within_a_tenth_of_the_real_packing(replicas):
    lengths = np.array(ragged(20000))
    draw = np.random.default_rng(1)
    real = []
    for _ in range(200):
        batch = draw.choice(lengths, 256)
        rows = pack(batch, 10**6, replicas)
        real.append(max(sum(int(batch[p]) for micro in row for p in micro) for row in rows))
    foreseen = busiest_tokens(lengths_of(lengths.tolist(), 4096), 256, replicas)
    assert foreseen == pytest.approx(np.mean(real), rel=0.1)


def test_the_busiest_replica_of_equal_samples_is_counted_exactly():
    full = lengths_of(None, 512)
    assert [busiest_tokens(full, 9, n) for n in (1, 2, 4, 8, 9, 20)] == [
        9 * 512, 5 * 512, 3 * 512, 2 * 512, 512, 512,
    ]  # fmt: skip


def test_rows_are_shared_where_that_is_clearly_faster_and_only_there():
    small = {"block_size": 4096, "lengths": ragged(5000)}
    enough = choose(request(batch_size=1024, **small))
    assert {c.plan.sp for c in enough.candidates} == {1}
    assert not any("SP" in line for line in log_lines(enough))
    few = choose(request(hosts=8, batch_size=256, **small))
    alone = choose(request(hosts=8, batch_size=256, pins=Pins(sp=1), **small))
    assert few.chosen.plan.sp > 1
    assert few.chosen.plan.dp * few.chosen.plan.sp == 64
    assert few.chosen.time.total < alone.chosen.time.total / 1.05
    assert any(f"SP : {few.chosen.plan.sp}, " in line for line in log_lines(few))


def test_a_sample_that_no_gpu_holds_alone_is_shared_and_the_plan_says_so():
    long = {"block_size": 2**17, "batch_size": 8, "lengths": [2**17]}
    pins = Pins(offload="none", recompute="full", tp=1)
    alone = choose(request(pins=replace(pins, sp=1), **long))
    shared = choose(request(pins=pins, **long))
    assert alone.chosen is None
    assert shared.chosen is not None and shared.chosen.plan.sp > 1


def test_replicas_of_several_ranks_are_parts_of_hosts_or_whole_hosts():
    mixed = request(hosts=2, per_host=6, batch_size=1, lengths=[1024])
    tried = {c.plan.sp for c in choose(mixed).candidates}
    assert tried <= {1, 2, 3, 6, 12} and 12 in tried


def test_a_pinned_number_of_replicas_leaves_the_rest_to_shared_rows():
    choice = choose(request(pins=Pins(dp=4), batch_size=4))
    tried = {(c.plan.dp, c.plan.sp, c.plan.pp, c.plan.tp) for c in choice.candidates}
    assert tried == {(4, 2, 1, 1), (4, 1, 2, 1), (4, 1, 1, 2)}
    with pytest.raises(PlanError, match="dp=3"):
        choose(request(pins=Pins(dp=3)))


def test_shared_rows_divide_activations_and_cost_exchanges():
    pins = {"zero": 3, "recompute": "full", "offload": "none", "micro_tokens": 32768}
    long = {"block_size": 32768, "batch_size": 8, "lengths": [32768]}
    memory, waits = [], []
    for sp in (1, 2, 4, 8):
        found = choose(request(pins=Pins(**pins, sp=sp), **long)).candidates[0]
        memory.append(found.memory.activations + found.memory.logits)
        waits.append(found.time.communication)
    assert memory == sorted(memory, reverse=True)
    assert memory[0] / memory[2] > 3
    assert waits[1] > 0


def test_replicas_differ_where_no_number_divides_the_gpus():
    few = {"block_size": 4096, "batch_size": 5, "lengths": ragged(5000)}
    chosen = choose(request(per_host=7, **few)).chosen.plan
    assert (chosen.replicas, chosen.dp, chosen.sp, chosen.gpus) == ("4+3", 2, 3, 7)
    assert [chosen.replica(rank) for rank in (0, 3, 4, 6)] == [
        (0, (0, 1, 2, 3)), (0, (0, 1, 2, 3)), (1, (4, 5, 6)), (1, (4, 5, 6)),
    ]  # fmt: skip
    assert any("SP : 4+3, " in line for line in log_lines(choose(request(per_host=7, **few))))
    pinned = choose(request(per_host=7, pins=Pins(replicas="5+2"), **few))
    assert {c.plan.replicas for c in pinned.candidates} == {"5+2"}


@pytest.mark.parametrize("word", ["4+4", "3+2"])
def test_pinned_replicas_must_be_all_gpus(word):
    with pytest.raises(PlanError, match=f"replicas={word[0]}.*there are 7"):
        choose(request(per_host=7, pins=Pins(replicas=word)))


@pytest.mark.parametrize("word", ["", "4+", "0+7", "4,3", "+"])
def test_replicas_are_written_as_a_sum(word):
    with pytest.raises(PlanError, match="as 4\\+3"):
        read_pins({"replicas": word})


def test_replicas_of_a_plan_are_its_degrees():
    with pytest.raises(PlanError, match="its replicas are not dp and sp"):
        Plan(zero=1, micro_tokens=10, dp=2, sp=2, replicas="4+3")


def test_a_second_copy_of_the_weights_spares_the_network_and_costs_memory():
    slow = {"hosts": 4, "batch_size": 256, "block_size": 4096, "lengths": [4096]}
    pins = {"zero": 3, "recompute": "none", "offload": "none", "micro_tokens": 4096, "sp": 1}
    without, kept = (
        choose(request(pins=Pins(**pins, hpz=hpz), **slow)).candidates[0] for hpz in (1, 8)
    )

    assert kept.memory.weights > 2 * without.memory.weights
    assert kept.time.communication < without.time.communication
    assert any("hpZ : 8" in line for line in log_lines(choose(request(pins=Pins(hpz=8), **slow))))


def test_a_second_copy_is_tried_on_several_hosts_and_pinned_only_where_it_can_be():
    many = choose(request(hosts=4, batch_size=1024))
    assert {c.plan.hpz for c in many.candidates} == {1, 8}
    assert {c.plan.zero for c in many.candidates if c.plan.hpz > 1} == {3}
    assert {c.plan.hpz for c in choose(request()).candidates} == {1}
    for pins in (Pins(hpz=3), Pins(hpz=2, zero=2), Pins(hpz=2, zero=3, offload="all")):
        with pytest.raises(PlanError, match="second copy of ZeRO-3's weights"):
            choose(request(pins=pins))


def test_gpus_of_different_speeds_are_weighed_and_told():
    fast, slow = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"
    devices = [Device(node, name, 80 * 2**30, 2**40) for node, name in ((0, fast), (1, slow))]
    cluster = cluster_of_devices(devices)
    assert cluster.speeds[1] == 1 and 1.5 < cluster.speeds[0] < 4
    assert cluster.gpu.name.startswith("A100")
    lines = list(describe_speeds(devices, cluster.speeds))
    assert len(lines) == 1 and f"1 x {slow} at 1.00" in lines[0]
    mixed = replace(request(batch_size=64), cluster=cluster)
    slower = replace(mixed, cluster=cluster_of_devices([devices[1]] * 2))
    assert slower.cluster.speeds == ()
    pinned = Pins(zero=3, recompute="full", micro_tokens=1024, offload="none")
    times = [choose(replace(q, pins=pinned)).candidates[0].time.compute for q in (mixed, slower)]
    assert times[0] == pytest.approx(times[1] * 2 / cluster.power, rel=0.05)


def test_each_replica_gets_work_for_its_speed_and_rows_for_its_memory():
    fast, slow = find_gpu("H100-SXM"), find_gpu("A100-SXM-40GB")
    mixed = request(hosts=2, per_host=2, batch_size=64)
    mixed = replace(mixed, cluster=mixed.cluster.with_gpus([fast, fast, slow, slow]))
    assert (mixed.cluster.gpu.name, mixed.cluster.gpu.memory) == (slow.name, slow.memory)
    plan = Plan(zero=3, micro_tokens=2048, recompute="none", dp=4)
    found = shares_of(mixed, plan)
    assert found[0] == found[1] and found[2] == found[3] == Share(2048, 1.0)
    assert found[0].speed == pytest.approx(mixed.cluster.speeds[0]) and found[0].speed > 1.5
    # The further memory is what the longer rows take.
    both = lengths_of(None, mixed.block_size)
    peaks = [footprint(mixed, replace(plan, micro_tokens=tokens), both).gpu.total
             for tokens in (2048, found[0].capacity)]  # fmt: skip
    assert peaks[1] - peaks[0] == pytest.approx(0.95 * (fast.memory - slow.memory), rel=0.02)
    pinned = replace(mixed, pins=Pins(micro_tokens=2048))
    assert {share.capacity for share in shares_of(pinned, plan)} == {2048}
    said = describe_shares(mixed, plan, found)
    assert said[1] == f"2 replicas on A100-SXM-40GB: {50 / (1 + found[0].speed):.1f} % of the " \
        "work each, micro-batches of at most 2048 tokens"  # fmt: skip
    two = replace(plan, dp=2, sp=1, replicas="3+1")
    assert shares_of(mixed, two) == (Share(3 * 2048, 3.0), Share(2048, 1.0))
    assert shares_of(replace(mixed, cluster=mixed.cluster.all_of(fast)), plan) == ()


def test_twice_the_hosts_are_twice_the_gpus_of_each_kind():
    fast, slow = find_gpu("H100-SXM"), find_gpu("A100-SXM-40GB")
    cluster = request(hosts=2, per_host=1).cluster.with_gpus([fast, slow])
    double = cluster.times(2)
    assert double.gpus == len(double.speeds) == len(double.each) == 4
    assert double.power == 2 * cluster.power


def test_a_gpu_that_is_not_known_is_given_no_weight():
    names = ("NVIDIA H100 80GB HBM3", "NVIDIA Something 9000")
    devices = [Device(0, name, 80 * 2**30, 2**40) for name in names]
    assert cluster_of_devices(devices).speeds == ()
