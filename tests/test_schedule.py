from dataclasses import replace

import pytest

from train.config import OptimizerConfig
from train.loop import learning_rate, short_of_rate

FLAT = OptimizerConfig(
    lr=2.0, lr_schedule="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0
)


def test_the_rate_is_constant_unless_asked_otherwise():
    assert [learning_rate(FLAT, step, 5) for step in range(5)] == [2.0] * 5


def test_the_warm_up_reaches_the_full_rate_at_its_last_step():
    config = replace(FLAT, warmup_steps=4)
    assert [learning_rate(config, step, 10) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_a_warm_up_may_be_a_share_of_all_steps():
    config = replace(FLAT, warmup_ratio=0.4)
    assert [learning_rate(config, step, 10) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]


@pytest.mark.parametrize(("kind", "middle"), [("linear", 1.0), ("cosine", 1.0)])
def test_a_schedule_falls_from_the_full_rate_through_half_of_it(kind, middle):
    config = replace(FLAT, lr_schedule=kind, warmup_steps=2)
    rates = [learning_rate(config, step, 12) for step in range(2, 12)]
    assert rates[0] == 2.0
    assert rates[5] == pytest.approx(middle)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0


def test_a_warm_up_that_is_longer_than_the_run_is_told():
    config = replace(FLAT, warmup_steps=11)
    assert "its warm-up of 11 steps is longer than the run of 10" in short_of_rate(config, 10)
    assert not short_of_rate(config, 11)
