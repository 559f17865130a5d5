"""Speeds as measured: what moves work between replicas, and what does not."""

from __future__ import annotations

import pytest

from train.data.feed import Placement
from train.errors import PlanError
from train.planning import Plan, choose
from train.planning.balance import Pace, corrected, of_replica, usual
from train.planning.pins import Pins, read_pins
from train.run.balancing import loads, rebalanced


def measured(rates, speeds):
    """Paces of replicas with these rates, whose work follows the speeds."""
    return [Pace(rate, speed / rate) for rate, speed in zip(rates, speeds, strict=True)]


def test_a_slow_replica_gets_work_for_its_speed_until_it_is_as_fast_again():
    equal = (1.0, 1.0, 1.0)
    found = corrected(equal, measured([4, 2, 4.1], equal))
    assert found == pytest.approx((2, 1, 2))
    assert corrected(found, measured([4, 2.1, 4], found)) == found
    assert corrected(found, measured([4, 4, 4], found)) == pytest.approx(equal)


@pytest.mark.parametrize("rates", [(1.0, 0.9), (1.14, 1.0), (0.88, 1.0)])
def test_noise_moves_nothing(rates):
    assert corrected((1.0, 1.0), measured(rates, (1.0, 1.0))) == (1.0, 1.0)


def test_told_speeds_are_corrected_only_where_they_are_wrong():
    told = (2.4, 1.0)
    assert corrected(told, measured([260, 100], told)) == told
    assert corrected(told, measured([120, 100], told)) == pytest.approx((1.2, 1))


def test_nobody_gets_less_work_whom_the_others_do_not_wait_for():
    """Few rows make products slow on any GPU: with fewer still nothing would be gained."""
    few = [Pace(10.0, 1.0), Pace(6.0, 0.6)]
    assert corrected((1.0, 1.0), few) == (1.0, 1.0)


def test_what_was_not_measured_keeps_its_share_among_the_others():
    paces = [Pace(4.0, 1.0), Pace(2.0, 2.0), Pace(), Pace(4.0, 1.0)]
    assert corrected((1.0,) * 4, paces) == pytest.approx((2, 1, 2, 2))
    assert corrected((1.0, 2.0), [Pace(4.0, 1.0), Pace()]) == (1.0, 2.0)


def test_a_replica_that_hardly_moves_is_not_left_without_work():
    assert corrected((1.0, 1.0), measured([100, 1], (1.0, 1.0))) == pytest.approx((8, 1))


def test_the_median_of_the_watched_steps_decides_and_too_little_work_says_nothing():
    steps = [Pace(4.0, 1.0), Pace(4.1, 1.0), Pace(0.1, 40.0), Pace(3.9, 1.0)]
    assert usual(steps).rate == pytest.approx(3.95)
    assert usual(steps[:2]) == usual([Pace(9.0, 0.001)] * 5) == Pace()


def test_the_slowest_rank_of_a_replica_decides():
    assert of_replica([Pace(4.0, 1.0), Pace(2.0, 2.0)]) == Pace(2.0, 2.0)
    assert of_replica([Pace(4.0, 1.0), Pace()]) == Pace()
    assert of_replica([Pace(4.0, 3.0), Pace(2.0, 2.0)]) == Pace(2.0, 3.0)  # as stages may be
    plan = Plan(zero=1, micro_tokens=100, dp=2, sp=2, replicas="3+2")
    placement = Placement(0, 2, 100, loads=loads(plan, 100, ()))
    ranks = [Pace(2.0, 1.0)] * 3 + [Pace(2.0, 1.0), Pace(1.0, 2.0)]
    found, said = rebalanced(plan, placement, ranks)
    assert [(load.capacity, load.speed) for load in found.loads] == [(150, 6.0), (100, 2.0)]
    assert "rank 4 at 0.50" in said
    assert rebalanced(plan, placement, [Pace(2.0, 1.0)] * 5) == (placement, "")


def test_a_plan_balances_unless_it_is_pinned_off_or_has_one_replica():
    from tests.planning.test_search import request

    assert choose(request()).chosen.plan.balances
    off = choose(request(pins=read_pins({"balance": "off"}))).chosen
    assert off.plan.balance == off.to_json()["plan"]["balance"] == "off"
    assert not off.plan.balances
    assert not choose(request(pins=Pins(sp=8))).chosen.plan.balances
    with pytest.raises(PlanError, match="balance must be one of on, off, but is 'of'"):
        read_pins({"balance": "of"})
