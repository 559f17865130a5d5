from dataclasses import replace

import pytest

from train.planning import (
    Pins,
    PlanRequest,
    built_in,
    choose,
    cluster_of,
    compare,
    explain,
    find_gpu,
    log_lines,
    pin_cost,
    scaling_warning,
    with_advice,
)

GIB = 2**30


def request(gpus=8, gpu="A100-SXM-80GB", model="mistral-7b", **changes):
    cluster = cluster_of([("n", gpus)], {}, find_gpu(gpu))
    return PlanRequest(
        built_in(model), cluster, **({"batch_size": 64, "block_size": 1024} | changes)
    )


def test_log_lines_are_the_originals():
    lines = log_lines(choose(request(pins=Pins(zero=3, recompute="full"))))
    assert lines[0].startswith("The number of candidates is ")
    assert lines[1].startswith("The number of possible candidates is ")
    assert lines[2] == "Configuration for parallelism is selected."
    assert lines[3] == (
        "No PP, No TP, recomputation : full, distribute_param : true, "
        "distribute_low_prec_param : true"
    )


def test_predicted_and_measured_stand_in_one_line():
    candidate = choose(request()).chosen
    memory = candidate.memory.total - candidate.memory.reserve
    line = compare(candidate, 1.1 * candidate.time.total, 0.95 * memory)
    assert "(+10 %)" in line and "(-5 %)" in line and "\n" not in line
    assert "GiB" not in compare(candidate, 1.0, None)
    assert compare(candidate, 1.0, memory, 1.5 * GIB).endswith(", 1.50 GiB reserved")


def test_an_explanation_shows_the_chosen_plan_and_every_plan_on_demand():
    question = request()
    choice = choose(question)
    text = explain(question, choice)
    assert f"{choice.chosen.memory.total / GIB:.1f}" in text
    assert len(explain(question, choice, everything=True).splitlines()) > len(choice.candidates)


def test_a_narrow_terminal_gets_the_totals_and_a_word_about_the_rest():
    question = request()
    choice = choose(question)
    whole, narrow = explain(question, choice), explain(question, choice, width=80)
    assert max(map(len, narrow.splitlines())) <= 80
    table = narrow.split("\n\n")[2]
    for size in (choice.chosen.memory.total, choice.chosen.host_memory):
        assert f"{size / GIB:.1f}" in table
    assert "tokens/s" in table and " weights " in whole and " weights " not in table
    needed = int(table.split("they need ")[1].split(" columns")[0])
    assert needed <= 160
    tight = explain(question, choice, width=needed)
    assert max(map(len, tight.splitlines())) == needed and " weights " in tight
    assert " weights " not in explain(question, choice, width=needed - 1)
    low = explain(question, choice, width=80, height=24)
    assert len(low.splitlines()) < 22 < len(narrow.splitlines())


def test_what_does_not_fit_is_told_by_how_much_and_what_would():
    question = request(gpus=1, gpu="L4", model="llama-3-8b")
    advised = with_advice(question, choose(question))
    assert advised.chosen is None
    assert "nothing fits: the smallest plan needs" in advised.nearest
    assert any(word in advised.nearest for word in ("GPUs", "--use-lora", "--block-size"))
    assert "Nothing fits" in explain(question, choose(question))


def test_what_the_advice_names_does_fit():
    question = request(gpus=1, model="llama-3-70b", pins=Pins(offload="none"))
    advised = with_advice(question, choose(question))
    count = int(advised.nearest.split(" GPUs")[0].split()[-1])
    sizes = (1,) * count
    larger = replace(question, cluster=replace(question.cluster, sizes=sizes))
    assert choose(larger).chosen is not None


def test_a_pin_that_costs_more_than_5_percent_is_priced_and_a_free_one_is_not():
    dear = request(pins=Pins(recompute="full"))
    assert "recompute=full cost" in pin_cost(dear, choose(dear))
    best = choose(request()).chosen.plan
    cheap = request(pins=Pins(zero=best.zero))
    assert pin_cost(cheap, choose(cheap)) is None
    assert pin_cost(request(), choose(request())) is None


@pytest.mark.parametrize(("batch", "packable", "said"), [
    (3, False, "leaves 2 of 8 GPUs"), (4, True, "hardly help"), (8, True, "hardly help"),
])  # fmt: skip
def test_too_many_gpus_for_the_batch_are_warned_of(batch, packable, said):
    question = request(batch_size=batch, packable=packable)
    assert said in scaling_warning(question, choose(question))


def test_enough_work_is_not_warned_of():
    question = request(batch_size=4096)
    assert scaling_warning(question, choose(question)) is None


def test_where_no_one_change_is_enough_two_are_told():
    asked = request(1, "A10", "llama-3-405b")
    nearest = with_advice(asked, choose(asked)).nearest
    assert " x " in nearest or "GPUs and" in nearest
    assert "smaller model" not in nearest
