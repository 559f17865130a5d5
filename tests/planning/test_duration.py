from dataclasses import replace
from itertools import product

import pytest

from train.planning import (
    Implementation,
    Pins,
    Plan,
    PlanRequest,
    built_in,
    cluster_of,
    find_gpu,
    find_shape,
)
from train.planning.duration import duration
from train.planning.hardware import GPUS
from train.planning.lengths import lengths_of
from train.planning.links import Group, data_group, gather_time
from train.planning.predict import predict

MPT = built_in("mpt-7b")
FULL = lengths_of(None, 2048)


def question(hosts, gpu="A100-SXM-80GB", per_replica=12, **changes):
    cluster = cluster_of([(f"n{i}", 8) for i in range(hosts)], {}, find_gpu(gpu))
    given = {"shape": MPT, "cluster": cluster, "batch_size": per_replica * 8 * hosts,
             "block_size": 2048, "implementation": Implementation("flash", "fused")}  # fmt: skip
    return PlanRequest(**(given | changes))


def speed(hosts, gpu="A100-SXM-80GB"):
    plan = Plan(3, 6 * 2048, dp=8 * hosts, accumulation=2)
    return predict(question(hosts, gpu), plan, FULL).tokens_per_s / (8 * hosts)


def test_published_speeds_of_a_7b_model_are_met():
    assert speed(1) == pytest.approx(4641, rel=0.08)
    assert speed(1, "H100-SXM") == pytest.approx(10643, rel=0.08)


def test_from_8_to_512_gpus_efficiency_falls_as_published_to_5_points():
    assert speed(64, "H100-SXM") / speed(1, "H100-SXM") == pytest.approx(0.909, abs=0.05)
    assert speed(64) / speed(1) == pytest.approx(0.940, abs=0.05)


def test_recomputation_costs_about_a_third_and_selective_little():
    def seconds(mode):
        return duration(question(1), Plan(3, 12288, mode, dp=8, accumulation=2), FULL).total

    none, selective, full = (seconds(mode) for mode in ("none", "selective", "full"))
    assert 1.2 < full / none < 1.4
    assert 1.0 < selective / none < 1.15


def test_a_pipeline_waits_for_its_first_micro_batch():
    few = duration(question(1), Plan(1, 2048, dp=1, pp=8, accumulation=8), FULL)
    many = duration(question(1), Plan(1, 2048, dp=1, pp=8, accumulation=64), FULL)
    assert few.pipeline / few.compute > 0.6
    assert many.pipeline / many.compute < 0.15


def test_tensor_parallelism_waits_for_its_collectives():
    alone = duration(question(1), Plan(1, 2048, dp=8, accumulation=12), FULL)
    eight = duration(question(1), Plan(1, 2048, dp=1, tp=8, accumulation=96), FULL)
    assert eight.communication > 10 * alone.communication


def test_a_collective_takes_the_slower_of_both_links():
    cluster = cluster_of([("a", 8), ("b", 8)], {"nic": "1x100Gb"}, find_gpu("H100-SXM"))

    class Whole:
        nvlink_efficiency = nic_efficiency = 1.0
        collective_latency, ring_step, ring_step_across = 1e-5, 2e-6, 4e-6

    near = gather_time(1e9, Group(8, 8, 1), cluster, Whole(), 0.0)
    far = gather_time(1e9, Group(16, 8, 1), cluster, Whole(), 0.0)
    assert near == pytest.approx(1e9 * 7 / 8 / cluster.gpu.link)
    assert far == pytest.approx(0.5e9 / 12.5e9)
    assert gather_time(1e9, Group(1, 1, 8), cluster, Whole(), 0.0) == 0.0
    ring = gather_time(0.0, Group(16, 8, 1), cluster, Whole(), 3.0)
    assert ring == pytest.approx(3 * (1e-5 + 14 * 2e-6 + 2 * 4e-6))


def test_data_groups_lie_across_hosts_when_tensors_are_split_inside():
    cluster = cluster_of([("a", 8), ("b", 8)], {}, find_gpu("H100-SXM"))
    assert data_group(Plan(1, 1, dp=16), cluster) == Group(16, 8, 1)
    assert data_group(Plan(1, 1, dp=2, tp=8), cluster) == Group(2, 1, 8)


def test_offload_costs_what_it_moves():
    kept = duration(question(1), Plan(2, 12288, dp=8, accumulation=2), FULL)
    gone = duration(question(1), Plan(2, 12288, offload="optimizer", dp=8, accumulation=2), FULL)
    assert kept.offload == 0 < gone.offload


def test_ranks_of_a_processor_hide_nothing():
    cluster = cluster_of([("a", 2)], {}, find_gpu("cpu", 4e9))
    on_cpu = question(1, cluster=cluster, batch_size=8, precision="fp32")
    found = duration(on_cpu, Plan(0, 2048, dp=2, accumulation=4), FULL)
    assert found.communication > 0.5 * 8 * MPT.parameters / cluster.gpu.link


def test_products_that_are_not_whole_tiles_take_longer():
    plan = Plan(1, 12288, dp=8, accumulation=2)
    round_, odd = (
        duration(question(1, shape=replace(MPT, ffn=ffn)), plan, FULL).compute
        for ffn in (16384, 16380)
    )
    assert 1.05 < odd / round_ < 1.2


def test_in_fp32_a_gpu_does_without_its_tensor_cores():
    plan = Plan(1, 12288, dp=8, accumulation=2)
    low, full = (
        duration(question(1, precision=precision), plan, FULL).compute
        for precision in ("bf16", "fp32")
    )
    assert full > 8 * low


@pytest.mark.parametrize("gpu", [gpu.name for gpu in GPUS])
def test_no_gpu_does_what_none_does_and_longer_links_never_help(gpu):
    row = find_gpu(gpu)
    for hidden, tokens, length in product((1024, 4096, 16384), (1, 4, 32), (2048, 32768)):
        shape = find_shape(
            f"layers=24,hidden={hidden},heads={hidden // 128},ffn={4 * hidden},vocab=50304,gated=0"
        )
        cluster = cluster_of([("a", 8), ("b", 8)], {}, row)
        asked = question(2, shape=shape, cluster=cluster, block_size=length, batch_size=16 * tokens)
        full = lengths_of(None, length)
        for zero in (1, 3):
            plan = Plan(zero, tokens * length, dp=16)
            found = predict(asked, plan, full)
            assert 0.001 < found.mfu < 0.75
            slow = replace(asked, cluster=replace(cluster, nic=cluster.nic / 4))
            dim = replace(
                asked, cluster=replace(cluster, gpu=replace(row, bandwidth=row.bandwidth / 2))
            )
            assert predict(slow, plan, full).time.total >= found.time.total
            assert predict(dim, plan, full).time.total >= found.time.total


def test_dividing_states_inside_hosts_saves_traffic_between_them():
    cluster = cluster_of([(f"n{i}", 8) for i in range(64)], {"nic": "4x100Gb"}, find_gpu("H100"))
    for zero in (1, 3):
        plan = Plan(zero, 2048, dp=512)
        asked = question(64, cluster=cluster, batch_size=512)
        host = replace(asked, pins=Pins(shards="host"))
        saved = duration(asked, plan, FULL).communication - duration(host, plan, FULL).communication
        assert saved > 0.1


def test_only_norms_written_in_pieces_are_slow():
    def seconds(name, kernels):
        other = Implementation("flash", kernels)
        asked = question(1, shape=built_in(name), implementation=other)
        return duration(asked, Plan(3, 12288, dp=8, accumulation=2), FULL).compute

    assert seconds("mpt-7b", "plain") == seconds("mpt-7b", "fused")
    assert 1.05 < seconds("llama-2-7b", "plain") / seconds("llama-2-7b", "fused") < 1.25
