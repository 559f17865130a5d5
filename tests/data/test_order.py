import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.order import sample_hash, sample_ids, steps_per_epoch
from train.errors import DataError

SIZES = st.integers(1, 400)


@settings(max_examples=60, deadline=None)
@given(
    samples=SIZES, batch=st.integers(1, 400), seed=st.integers(0, 2**40), epoch=st.integers(0, 9)
)
def test_an_epoch_visits_distinct_samples_floor_n_over_b_times_b_of_them(
    samples, batch, seed, epoch
):
    batch = min(batch, samples)
    steps = steps_per_epoch(samples, batch)
    seen = np.concatenate(
        [sample_ids(seed, "f", samples, batch, epoch * steps + s) for s in range(steps)]
    )
    assert seen.dtype == np.int64
    assert len(seen) == samples // batch * batch
    assert len(np.unique(seen)) == len(seen)
    assert seen.min() >= 0 and seen.max() < samples


@settings(max_examples=30, deadline=None)
@given(samples=SIZES, step=st.integers(0, 10**6))
def test_a_step_is_found_without_the_steps_before_it(samples, step):
    batch = max(1, samples // 3)
    alone = sample_ids(7, "f", samples, batch, step)
    for other in (0, step + 1, step // 2):
        sample_ids(7, "f", samples, batch, other)
    assert np.array_equal(alone, sample_ids(7, "f", samples, batch, step))


def test_a_batch_of_the_whole_dataset_is_a_permutation():
    for samples in (1, 2, 3, 17, 1000, 4097):
        assert np.array_equal(np.sort(sample_ids(0, "f", samples, samples, 0)), np.arange(samples))


def test_the_batches_of_another_size_walk_the_same_permutation():
    whole = sample_ids(3, "f", 120, 120, 0)
    tenths = np.concatenate([sample_ids(3, "f", 120, 12, step) for step in range(10)])
    assert np.array_equal(whole, tenths)


@pytest.mark.parametrize("change", [{"seed": 1}, {"fingerprint": "g"}, {"step": 1}])
def test_seed_fingerprint_and_epoch_each_change_the_order(change):
    base = {"seed": 0, "fingerprint": "f", "samples": 500, "batch": 500, "step": 0}
    first, second = sample_ids(**base), sample_ids(**(base | change))
    assert np.mean(first == second) < 0.03


def test_the_permutation_is_spread_evenly():
    """Chi-square over (place, id) cells of 10 x 10, 400 seeds of 100 samples each."""
    counts = np.zeros((10, 10))
    for seed in range(400):
        ids = sample_ids(seed, "f", 100, 100, 0)
        np.add.at(counts, (np.arange(100) // 10, ids // 10), 1)
    statistic = ((counts - 400) ** 2 / 400).sum()
    assert statistic < 130  # 81 degrees of freedom: the 99.95 % point


def test_neighbours_do_not_stay_neighbours():
    ids = sample_ids(5, "f", 10_000, 10_000, 0)
    assert np.mean(np.abs(np.diff(ids)) == 1) < 0.002
    assert abs(np.corrcoef(ids[:-1], ids[1:])[0, 1]) < 0.05


def test_a_huge_dataset_costs_no_more_than_its_batch():
    ids = sample_ids(0, "f", 10**12, 64, 10**9)
    assert len(np.unique(ids)) == 64 and ids.max() < 10**12


def test_a_batch_larger_than_the_dataset_is_refused_with_both_numbers():
    with pytest.raises(DataError, match=r"--batch-size 9 .* dataset has 8 samples"):
        steps_per_epoch(8, 9)


def test_the_order_does_not_change_between_versions():
    assert sample_ids(0, "fingerprint", 1000, 5, 0).tolist() == GOLDEN


def test_the_hash_names_the_set_and_not_its_order():
    ids = sample_ids(0, "f", 50, 10, 0)
    assert sample_hash(ids) == sample_hash(ids[::-1])
    assert sample_hash(ids) != sample_hash(sample_ids(0, "f", 50, 10, 1))
    assert len(sample_hash(ids)) == 16


GOLDEN = [313, 709, 236, 830, 779]
