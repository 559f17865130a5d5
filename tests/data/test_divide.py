import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.divide import divide, places, route

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=20)
RANKS = st.integers(2, 9)
WINDOWS = st.sampled_from([None, 1, 2, 7, 100])


def owner_of_each_token(division, total):
    owners = np.full(total, -1)
    for rank, stretches in enumerate(division):
        assert (owners[places(stretches)] == -1).all()
        owners[places(stretches)] = rank
    return owners


def seen(lengths, window):
    """Which keys each token of the row sees, written out."""
    total = sum(lengths)
    sample = np.repeat(np.arange(len(lengths)), lengths)
    distance = np.arange(total)[:, None] - np.arange(total)[None, :]
    same = sample[:, None] == sample[None, :]
    return same & (distance >= 0) & (distance < (window or total + 1))


@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, ranks=RANKS)
def test_every_token_belongs_to_one_rank_and_all_ranks_have_as_many(lengths, ranks):
    division = divide(lengths, ranks)
    assert len(division) == ranks
    owners = owner_of_each_token(division, sum(lengths))
    counts = np.bincount(owners, minlength=ranks)
    assert counts.sum() == sum(lengths) and counts.max() - counts.min() <= 2
    assert division == divide(tuple(lengths), ranks)
    starts = {0, *np.cumsum(lengths).tolist()}
    for stretches in division:
        for stretch in stretches:
            assert stretch.start in starts and stretch.start <= stretch.first < stretch.last
            assert not any(stretch.start < start < stretch.last for start in starts)


@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, ranks=RANKS, window=WINDOWS)
def test_each_rank_gets_the_keys_that_its_tokens_see_and_no_others(lengths, ranks, window):
    division = divide(lengths, ranks)
    sight = seen(lengths, window)
    held = [places(stretches) for stretches in division]
    routes = [route(division, rank, window) for rank in range(ranks)]
    for rank, own in enumerate(routes):
        come = [held[peer][routes[peer].sends[rank]] for peer in range(ranks)]
        assert tuple(len(part) for part in come) == own.receives
        wanted = np.flatnonzero(sight[held[rank]].any(axis=0)) if len(held[rank]) else held[rank]
        got = np.concatenate(come)
        assert len(set(got)) == len(got)
        assert sorted(got) == sorted(set(wanted) - set(held[rank]))
        here = np.concatenate([held[rank], *come])
        for number, stretch in enumerate(division[rank]):
            keys = here[own.keys[own.bounds[number] : own.bounds[number + 1]]]
            assert (
                keys.tolist()
                == np.flatnonzero(sight[stretch.first : stretch.last].any(axis=0)).tolist()
            )


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_the_cost_is_nearly_equal_for_one_long_sample_and_for_ragged_rows(ranks):
    generator = np.random.default_rng(0)
    rows = [[4096]]
    for _ in range(30):
        drawn = np.exp(generator.normal(5.2, 1.0, 12)).astype(int)
        rows.append(np.clip(drawn, 8, 4096).tolist())
    for lengths in rows:
        costs = []
        for stretches in divide(lengths, ranks):
            pairs = sum(
                (s.first + s.last + 1 - 2 * s.start) * (s.last - s.first) / 2 for s in stretches
            )
            tokens = sum(s.last - s.first for s in stretches)
            costs.append(tokens * 12 * 2048 * 2048 + pairs * 4 * 2048)
        assert max(costs) <= 1.07 * np.mean(costs)


def test_nothing_is_sent_where_every_cut_falls_between_samples():
    division = divide([10, 10, 10, 10, 10, 10], 3)
    for rank in range(3):
        assert sum(route(division, rank, None).receives) == 0


def test_a_window_sends_only_what_it_sees():
    division = divide([800], 2)
    assert sum(sum(route(division, rank, None).receives) for rank in range(2)) == 600
    assert sum(sum(route(division, rank, 11).receives) for rank in range(2)) == 20


def test_a_row_of_fewer_tokens_than_ranks_leaves_ranks_without_any():
    division = divide([1, 1], 5)
    assert sorted(len(stretches) for stretches in division) == [0, 0, 0, 1, 1]
    empty = next(rank for rank in range(5) if not division[rank])
    found = route(division, empty, None)
    assert len(found.keys) == 0 and found.bounds == (0,) and sum(found.receives) == 0
