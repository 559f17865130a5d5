import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.pace import unit
from train.data.pack import Load, pack, pack_unequal

LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=120).map(np.array)


def ragged(count, block, seed=0):
    """Lengths as instruction data has them: log-normal, cut at the block size."""
    draws = np.random.default_rng(seed).lognormal(np.log(block / 5), 0.8, count)
    return np.clip(draws, 8, block).astype(np.int32)


def totals(packed, values):
    return np.array([[sum(values[p] for p in micro) for micro in row] for row in packed])


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, spare=st.integers(0, 200), replicas=st.integers(1, 40))
def test_every_sample_is_packed_once_in_equally_many_micro_batches_within_capacity(
    lengths, spare, replicas
):
    capacity = int(lengths.max()) + spare
    packed = pack(lengths, capacity, replicas)
    positions = sorted(p for row in packed for micro in row for p in micro)
    assert positions == list(range(len(lengths)))
    assert len(packed) == replicas and len({len(row) for row in packed}) == 1
    assert totals(packed, lengths).max() <= capacity
    assert packed == pack(lengths.copy(), capacity, replicas)


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, spare=st.integers(0, 200), replicas=st.integers(1, 40))
def test_no_replica_is_idle_while_another_has_two_samples_that_it_could_take(
    lengths, spare, replicas
):
    packed = pack(lengths, int(lengths.max()) + spare, replicas)
    for micros in zip(*packed, strict=True):
        if len(packed[0]) == 1 and not all(micros):
            assert max(len(micro) for micro in micros) == 1


def test_the_rounds_are_as_few_as_the_tokens_allow():
    for block, count, replicas in ((1024, 256, 8), (512, 509, 7), (2048, 1024, 64)):
        lengths = ragged(count, block)
        for capacity in (block, 2 * block, 8 * block):
            rounds = len(pack(lengths, capacity, replicas)[0])
            fewest = -(-int(lengths.sum()) // (capacity * replicas))
            assert rounds <= fewest + 1 and rounds <= 1.15 * fewest + 1


@pytest.mark.parametrize("replicas", [1, 3, 8, 64])
def test_the_work_is_even_over_replicas_and_in_every_round(replicas):
    lengths = ragged(1024, 1024)

    def cost(tokens):
        return tokens * (1 + tokens / 4096)

    packed = pack(lengths, 4096, replicas, cost)
    loads = totals(packed, cost(lengths))
    assert loads.sum(axis=1).max() / loads.sum(axis=1).mean() < 1.01
    assert loads.max(axis=0).sum() / loads.mean(axis=0).sum() < 1.03


def test_the_work_is_even_when_the_bins_are_nearly_full():
    lengths = np.full(64, 100)
    packed = pack(lengths, 400, 4)
    assert len(packed[0]) == 4
    assert (totals(packed, lengths) == 400).all()


def test_a_single_long_sample_stands_alone_while_the_rest_is_shared_out():
    lengths = np.array([1000, *([10] * 30)])
    packed = pack(lengths, 1000, 4)
    assert len(packed[0]) == 1
    assert sorted(len(row[0]) for row in packed) == [1, 10, 10, 10]


def test_more_replicas_than_samples_leave_empty_micro_batches():
    packed = pack(np.array([5, 7, 9]), 16, 8)
    assert sorted(len(row[0]) for row in packed) == [0] * 5 + [1] * 3
    assert all(len(row) == 1 for row in packed)


def test_the_predicted_cost_and_not_the_length_is_evened_out():
    lengths = np.array([8, 8, 8, 8, 4, 4, 4, 4])
    packed = pack(lengths, 100, 2, lambda tokens: np.where(tokens == 8, 1.0, 4.0))
    assert [sum(lengths[p] == 4 for p in row[0]) for row in packed] == [2, 2]


@pytest.mark.parametrize("lengths, replicas", [([9], 1), ([], 1), ([1], 0)])
def test_what_cannot_be_packed_is_refused(lengths, replicas):
    with pytest.raises(ValueError, match=r"pack|capacity 8"):
        pack(np.array(lengths, dtype=int), 8, replicas)


@pytest.mark.slow
@pytest.mark.parametrize("capacity", [2048, 16384])
def test_a_large_step_is_packed_in_the_time_of_a_blink(capacity):
    lengths = ragged(4096, 2048)
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        pack(lengths, capacity, 512)
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 1.4 * unit()  # quiet and not traced: 0.2


UNEQUAL = [Load(4000, 4.0), Load(3000, 3.0)]


@settings(max_examples=100, deadline=None)
@given(
    lengths=LENGTHS,
    loads=st.lists(
        st.builds(Load, st.integers(64, 300), st.sampled_from([1.0, 2.0, 3.0])),
        min_size=1,
        max_size=9,
    ),
)
def test_unequal_replicas_hold_every_sample_once_within_their_own_capacities(lengths, loads):
    packed = pack_unequal(lengths, loads)
    assert sorted(p for row in packed for micro in row for p in micro) == list(range(len(lengths)))
    assert len(packed) == len(loads) and len({len(row) for row in packed}) == 1
    for load, row in zip(loads, packed, strict=True):
        assert all(sum(lengths[p] for p in micro) <= load.capacity for micro in row)


def test_unequal_replicas_end_together():
    lengths = ragged(256, 1024)
    first, second = totals(pack_unequal(lengths, UNEQUAL), lengths)
    assert len(first) > 10
    assert first.sum() / 4 == pytest.approx(second.sum() / 3, rel=0.01)
    assert max(first / 4) / min(first / 4) < 1.2
    np.testing.assert_allclose(first / 4, second / 3, rtol=0.1)


def test_a_single_long_sample_goes_to_the_faster_replica():
    packed = pack_unequal(np.array([900, 100, 100]), [Load(1000), Load(2000, 2.0)])
    assert packed == (((1, 2),), ((0,),))


def test_equal_loads_are_packed_as_ever():
    lengths = ragged(100, 512)
    assert pack_unequal(lengths, [Load(1024)] * 5) == pack(lengths, 1024, 5)
    assert pack_unequal(lengths, [Load(1024, 3.0)] * 5) == pack(lengths, 1024, 5)


def test_equally_large_replicas_of_different_speeds_get_work_for_their_own():
    lengths = ragged(256, 512)
    slow, fast = totals(pack_unequal(lengths, [Load(2048), Load(2048, 2.0)]), lengths)
    assert len(slow) > 5 and fast.max() <= 2048
    assert fast.sum() / slow.sum() == pytest.approx(2, rel=0.03)
