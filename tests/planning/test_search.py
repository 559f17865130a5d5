import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.config import LoraConfig
from train.errors import PlanError
from train.planning import (
    Implementation,
    Pins,
    Plan,
    PlanRequest,
    built_in,
    choose,
    cluster_of,
    find_gpu,
)
from train.planning.pins import read_implementation, read_pins

MISTRAL = built_in("mistral-7b")


def request(hosts=1, per_host=8, gpu="A100-SXM-80GB", **changes):
    cluster = cluster_of([(f"n{i}", per_host) for i in range(hosts)], {}, find_gpu(gpu))
    given = {"shape": MISTRAL, "cluster": cluster, "batch_size": 256, "block_size": 1024}
    return PlanRequest(**(given | changes))


def test_the_same_question_gets_the_same_answer():
    first, second = choose(request()), choose(request())
    assert first == second
    assert first.chosen.plan.digest == second.chosen.plan.digest


def test_the_chosen_plan_fits_and_is_the_fastest_to_half_a_percent():
    choice = choose(request())
    best = min(candidate.time.total for candidate in choice.possible)
    assert choice.chosen.fits
    assert choice.chosen.time.total <= best * 1.0051


@pytest.mark.parametrize("gpu", ["H100-SXM", "A100-SXM-80GB", "RTX4090", "L40S"])
@pytest.mark.parametrize("lora", [None, LoraConfig(16, 32, 0.0)])
def test_nothing_is_offloaded_where_something_fits_without(gpu, lora):
    for count in (1, 2, 4, 8):
        asked = request(1, count, gpu, lora=lora, fused=True)
        choice = choose(asked)
        whole = [c for c in choice.possible if c.plan.offload == "none"]
        if choice.chosen is not None:
            assert (choice.chosen.plan.offload == "none") == bool(whole)
    pinned = choose(request(1, 8, gpu, lora=lora, pins=Pins(offload="optimizer")))
    assert {c.plan.offload for c in pinned.candidates} == {"optimizer"}


def test_pins_are_kept_and_only_narrow_the_candidates():
    pins = Pins(zero=2, recompute="full", micro_tokens=4096, offload="none", tp=1)
    free, pinned = choose(request()), choose(request(pins=pins))
    assert [c.plan.to_json()["zero"] for c in pinned.candidates] == [2]
    assert pinned.chosen.plan.recompute == "full"
    assert pinned.chosen.plan.micro_tokens == 4096
    assert pinned.chosen.time.total >= 0.995 * free.chosen.time.total


def test_zero_0_is_not_offered_in_bf16_but_is_in_fp32():
    assert {c.plan.zero for c in choose(request()).candidates} == {1, 2, 3}
    fp32 = choose(request(precision="fp32")).candidates
    assert {c.plan.zero for c in fp32} == {0, 1, 2, 3}


def test_other_peoples_runs_may_be_described_at_any_stage():
    dense = request(pins=Pins(zero=0), implementation=Implementation("dense"))
    assert {c.plan.zero for c in choose(dense).candidates} == {0}


def test_the_counts_of_the_original_add_up():
    choice = choose(request(hosts=1, per_host=1))
    assert len(choice.possible) + sum(choice.rejected.values()) == len(choice.candidates)


@pytest.mark.parametrize(
    ("pins", "part"),
    [
        ({"zero": "4"}, "one of 0, 1, 2, 3, but is '4'"),
        ({"recompute": "ful"}, "did you mean 'full'"),
        ({"micro_tokens": "0"}, "at least 1"),
        ({"micro_tokens": "100"}, "cannot hold the longest sample of 1024"),
        ({"dp": "3"}, "leave dp out, it is 8"),
        ({"tp": "3"}, "does not divide the model's 32 heads.*1, 2, 4, 8"),
        ({"tp": "8", "pp": "2"}, "does not divide the 8 GPUs"),
        ({"zero": "1", "offload": "all"}, "contradict each other"),
        ({"zero": "0"}, "not offered in bf16"),
        ({"stage": "3"}, "does not know 'stage'"),
    ],
)
def test_impossible_pins_are_one_sentence(pins, part):
    with pytest.raises(PlanError, match=part) as caught:
        choose(request(pins=read_pins(pins)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "parts",
    [
        {"zero": 4},
        {"micro_tokens": 0},
        {"zero": 0, "offload": "optimizer"},
        {"zero": 2, "offload": "all"},
        {"recompute": "some"},
        {"dp": 0},
    ],
)
def test_a_plan_that_no_engine_has_is_not_built(parts):
    with pytest.raises(PlanError):
        Plan(**({"zero": 3, "micro_tokens": 1024} | parts))


def test_another_implementation_is_named_by_its_words_and_by_no_others():
    assert read_implementation({}) is None
    assert read_implementation({"kernels": "plain"}) == Implementation("flash", "plain", "bf16")
    with pytest.raises(PlanError, match="attention must be one of dense, flash"):
        read_implementation({"attention": "sparse"})


def test_more_stages_than_layers_and_heads_that_do_not_divide_are_refused():
    with pytest.raises(PlanError, match="more than the model's 32 layers"):
        choose(request(hosts=8, pins=Pins(pp=64)))
    with pytest.raises(PlanError, match="does not divide the model's 32 heads"):
        choose(request(hosts=8, pins=Pins(tp=64)))


def test_shorter_samples_cost_less_than_full_blocks():
    short = choose(request(lengths=(100,) * 50 + (1024,)))
    assert short.chosen.time.total < 0.3 * choose(request()).chosen.time.total


def test_a_histogram_and_its_samples_are_the_same_question():
    samples = (100, 100, 100, 700)
    assert choose(request(lengths=samples)) == choose(request(lengths={100: 3, 700: 1}))


@settings(max_examples=8, deadline=None)
@given(
    hosts=st.integers(1, 9),
    per_host=st.integers(1, 9),
    batch=st.integers(1, 700),
    block=st.sampled_from([128, 1000, 8192]),
    lora=st.booleans(),
    precision=st.sampled_from(["bf16", "fp32"]),
)
def test_any_batch_on_any_number_of_gpus_has_plans_of_finite_cost(
    hosts, per_host, batch, block, lora, precision
):
    question = request(
        hosts, per_host, batch_size=batch, block_size=block, precision=precision,
        lora=LoraConfig(16, 32, 0.0) if lora else None,
    )  # fmt: skip
    for candidate in choose(question).candidates:
        assert candidate.plan.gpus == hosts * per_host
        assert 0 < candidate.time.total < float("inf")
        assert 0 < candidate.mfu < 1
        assert all(part >= 0 for part in vars(candidate.memory).values())
        capacity = candidate.plan.accumulation * candidate.plan.micro_tokens * candidate.plan.dp
        assert capacity >= batch * block
