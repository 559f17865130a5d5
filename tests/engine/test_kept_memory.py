"""What autograd keeps, traced with fake tensors, against what the planner says."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest

from bench.activations import GEMMA2, SMALL, Case, expected, traced

CASES = (
    Case("gemma2", GEMMA2, 2048, "none", length=512),
    Case("gemma2", GEMMA2, 2048, "full", length=2048),
    Case("mistral", SMALL, 2048, "none", rank=16, dropout=0.1),
    Case("mistral", SMALL, 2048, "full", rank=16, dropout=0.1),
)


@pytest.fixture(scope="module")
def tracer():
    """A process of its own, so that nothing that other tests leave in theirs can be counted."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


def measure(case):
    measured, config = traced(case)
    return measured, expected(case, config)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}-{case.mode}")
def test_capped_scores_and_dropped_inputs_are_kept_as_planned_to_a_tenth(case, tracer):
    found = list(tracer.map(measure, [replace(case, layers=layers) for layers in (1, 3)]))
    for measured, planned in found:
        assert planned == pytest.approx(measured, rel=0.1)
    (few, few_planned), (many, many_planned) = found
    assert many_planned - few_planned == pytest.approx(many - few, rel=0.1)  # of two layers
