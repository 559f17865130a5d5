"""What autograd keeps, traced with fake tensors, against what the planner says."""

from dataclasses import replace

import pytest

from bench.activations import GEMMA2, SMALL, Case, expected, traced

CASES = (
    Case("gemma2", GEMMA2, 2048, "none", length=512),
    Case("gemma2", GEMMA2, 2048, "full", length=2048),
    Case("mistral", SMALL, 2048, "none", rank=16, dropout=0.1),
    Case("mistral", SMALL, 2048, "full", rank=16, dropout=0.1),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}-{case.mode}")
def test_capped_scores_and_dropped_inputs_are_kept_as_planned_to_a_tenth(case):
    found = []
    for layers in (1, 3):
        measured, config = traced(replace(case, layers=layers))
        planned = expected(replace(case, layers=layers), config)
        assert planned == pytest.approx(measured, rel=0.1)
        found.append((measured, planned))
    (few, few_planned), (many, many_planned) = found
    assert many_planned - few_planned == pytest.approx(many - few, rel=0.1)  # of two layers
