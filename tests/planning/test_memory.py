from dataclasses import replace

import pytest

from train.config import LoraConfig
from train.planning import (
    Implementation,
    Pins,
    Plan,
    PlanRequest,
    built_in,
    cluster_of,
    find_gpu,
)
from train.planning.activations import Setting, layer_bytes, peak
from train.planning.duration import duration
from train.planning.lengths import lengths_of
from train.planning.memory import footprint
from train.planning.search import choose
from train.planning.states import pinned, states_of

MISTRAL = built_in("mistral-7b")
P = MISTRAL.parameters
GIB = 2**30
FULL = lengths_of(None, 1024)


def request(gpus=8, **changes):
    cluster = cluster_of([("n", gpus)], {}, find_gpu("A100-SXM-80GB"))
    return PlanRequest(**({"shape": MISTRAL, "cluster": cluster, "batch_size": 64,
                       "block_size": 1024} | changes))  # fmt: skip


def memory(plan, **changes):
    return footprint(request(plan.gpus, **changes), plan, FULL)


def test_a_layer_keeps_what_its_operations_keep():
    h, kv, f = 4096, 1024, 14336
    layer = layer_bytes(MISTRAL, Setting())
    assert layer.none == 2 * (4 * h + 2 * h + 2 * h) + 4 * h + 4 * kv + 4 * 32 + 8 * f + 8
    assert layer.selective == 2 * h + 2 * (h + 2 * kv + 2 * f) + 4 * h + 2 * h + 4 * 32
    assert layer.full == 2 * h


def test_states_of_each_stage_on_8_gpus():
    for zero, weights, gradients, late, states in (
        (1, 2 * P, 4 * P, 2 * P, 12 * P / 8),
        (2, 2 * P, 4 * P / 8, 0, 12 * P / 8),
    ):
        found = states_of(MISTRAL, Plan(zero, 4096, dp=8), 2, 0)
        assert (found.weights, found.gradients, found.late, found.optimizer) == (
            weights, gradients, late, states,
        )  # fmt: skip
    three = states_of(MISTRAL, Plan(3, 4096, dp=8), 2, 0)
    assert three.weights == pytest.approx(2 * P / 8, rel=1e-3)
    assert three.optimizer == 12 * P / 8


def test_frozen_parameters_cost_their_weights_only():
    found = states_of(MISTRAL, Plan(2, 4096, dp=1), 2, 16)
    trained = MISTRAL.adapter_parameters(16)
    assert found.weights == 2 * (P + trained)
    assert found.optimizer == 12 * trained


def test_recomputation_and_shorter_micro_batches_need_less():
    sizes = [memory(Plan(3, 8192, mode, dp=8)).gpu.total for mode in ("none", "selective", "full")]
    assert sizes == sorted(sizes, reverse=True)
    assert memory(Plan(3, 4096, dp=8)).gpu.total < memory(Plan(3, 8192, dp=8)).gpu.total


def test_offload_moves_states_to_the_host():
    kept, gone = memory(Plan(2, 4096, dp=8)), memory(Plan(2, 4096, offload="optimizer", dp=8))
    assert gone.gpu.optimizer == 0 < kept.gpu.optimizer
    assert gone.host >= 8 * (kept.gpu.optimizer + kept.gpu.gradients)


def test_offloaded_states_are_copied_to_be_saved_and_pinned_buffers_are_powers_of_two():
    assert [pinned(size) for size in (0, 1, 64 * GIB, 81 * GIB)] == [0, 1, 64 * GIB, 128 * GIB]
    for zero in (1, 2, 3):
        gone = memory(Plan(zero, 4096, offload="optimizer", dp=8))
        assert gone.host >= 2 * 12 * P + 4 * P  # states, the copy that is saved, gradients
    one = memory(Plan(2, 4096, offload="optimizer", dp=8)).host
    master = gradient = pinned(4 * P / 8)
    copy = pinned(2 * P / 8)
    moments = 8 * P / 8
    process = 2.5 * GIB + 2**28
    assert one == pytest.approx(8 * (master + gradient + copy + moments + 12 * P / 8 + process))


def test_a_host_has_room_for_the_copy_that_is_saved():
    one, two = memory(Plan(2, 4096, dp=8)), memory(Plan(2, 8192, dp=8))
    assert one.host == two.host >= 8 * one.gpu.optimizer


def test_logits_follow_the_share_of_tokens_that_carries_loss():
    all_tokens = peak(MISTRAL, Setting(), "none", 8192, 1.0)
    few = peak(MISTRAL, Setting(), "none", 8192, 0.25)
    assert few[1] < all_tokens[1]
    assert few[0] == all_tokens[0]


def test_scores_are_kept_only_by_dense_attention():
    flash = memory(Plan(1, 4096, dp=8), implementation=Implementation("flash")).gpu.activations
    dense = memory(Plan(1, 4096, dp=8), implementation=Implementation("dense")).gpu.activations
    assert dense - flash == pytest.approx(32 * 5 * 32 * 1024 * 4096, rel=0.01)


def test_an_adapter_over_a_frozen_model_keeps_less_of_each_layer():
    full, frozen = layer_bytes(MISTRAL, Setting()), layer_bytes(MISTRAL, Setting(adapter=16))
    assert frozen.none == full.none - 2 * 2 * 4096 + 2 * 16 * 7
    lora = memory(Plan(2, 4096, dp=1), lora=LoraConfig(16, 32, 0.0)).gpu
    assert lora.optimizer < 1e9


DESCRIBED = Implementation("flash", "fused")


def test_sequence_parallelism_of_tensor_ranks_divides_what_they_repeat():
    plan = Plan(1, 4096, dp=1, tp=8)
    whole = memory(plan, implementation=DESCRIBED).gpu
    split = memory(plan, implementation=DESCRIBED, pins=Pins(sequence="tensor")).gpu
    assert split.weights == whole.weights
    assert split.activations < 0.6 * whole.activations


def test_states_divided_inside_hosts_do_not_shrink_with_more_hosts():
    def optimizer(hosts, shards):
        cluster = cluster_of([(f"n{i}", 8) for i in range(hosts)], {}, find_gpu("H100-SXM"))
        asked = request(cluster=cluster, pins=Pins(shards=shards), implementation=DESCRIBED)
        return footprint(asked, Plan(1, 4096, dp=8 * hosts), FULL).gpu.optimizer

    assert optimizer(4, "host") == optimizer(1, "host") == 4 * optimizer(4, "all")


def test_a_pipelines_late_gradients_meet_its_other_micro_batches():
    fp32 = replace(DESCRIBED, gradients="fp32")
    deep = memory(Plan(1, 1024, pp=4, dp=2, accumulation=8), implementation=fp32).gpu
    low = memory(Plan(1, 1024, pp=4, dp=2, accumulation=8), implementation=DESCRIBED).gpu
    assert deep.gradients == pytest.approx(2 * low.gradients)
    assert deep.buffers > low.gradients  # the gradients in the weights' type exist besides


def test_the_update_of_an_undivided_fp16_optimizer_copies_all_gradients():
    found = memory(Plan(1, 1024, dp=1), implementation=DESCRIBED).gpu
    assert found.buffers == pytest.approx(6 * P)  # one copy as it is, one in fp32


def test_fused_kernels_keep_less_and_form_no_logits():
    plan = Plan(3, 8192, dp=8)
    plain, fused = memory(plan).gpu, memory(plan, fused=True).gpu
    assert fused.activations + fused.logits < 0.9 * (plain.activations + plain.logits)
    assert fused.weights == plain.weights
    asked = request(), request(fused=True)
    slow, fast = (duration(one, plan, FULL).compute for one in asked)
    assert 1.05 < slow / fast < 1.3


def test_a_base_in_4_bits_costs_a_quarter_and_is_never_divided():
    adapter = LoraConfig(16, 32, 0.0)
    plan = Plan(1, 4096, dp=8)
    whole = memory(plan, lora=adapter).gpu
    packed = memory(plan, lora=adapter, quantize="nf4").gpu
    # 6.98e9 of 7.25e9 parameters are in the layers' matrices.
    assert whole.weights - packed.weights == pytest.approx(6.98e9 * (2 - 0.516), rel=1e-3)
    assert packed.optimizer == whole.optimizer
    found = choose(request(8, lora=adapter, quantize="nf4"))
    assert {candidate.plan.zero for candidate in found.candidates} == {1, 2}
    slower = duration(request(8, lora=adapter, quantize="nf4"), plan, FULL)
    assert slower.compute > duration(request(8, lora=adapter), plan, FULL).compute
