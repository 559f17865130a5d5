import numpy as np
import pytest

from train.data.batch import collate
from train.data.feed import Placement, whole_split
from train.data.pack import Load


class Pair:
    """Two samples: the second token of the first, all but the first of the second carry loss."""

    def sample(self, number):
        tokens = [np.array([5, 6, 7]), np.array([1, 2, 3, 4])][number].astype(np.int32)
        return tokens, [np.array([0, 1, 0]), np.array([0, 1, 1, 1])][number].astype(bool)


def test_samples_are_laid_end_to_end_with_labels_shifted_inside_each():
    batch = collate(Pair(), np.array([1, 0]))
    assert batch.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert batch.labels.tolist() == [2, 3, 4, -100, 6, -100, -100]
    assert batch.positions.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert batch.samples.tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert batch.lengths == (4, 3)
    assert (batch.loss_tokens, batch.real_tokens) == (4, 7)


def test_every_array_is_int64():
    for ids in ([], [0]):
        batch = collate(Pair(), ids)
        arrays = (batch.tokens, batch.labels, batch.positions, batch.samples)
        assert {array.dtype for array in arrays} == {np.dtype(np.int64)}


def test_a_mask_on_the_first_token_predicts_nothing():
    class First:
        def sample(self, number):
            return np.array([3, 4], dtype=np.int32), np.array([True, False])

    assert collate(First(), [0]).loss_tokens == 0


def test_an_empty_micro_batch_is_one_token_without_weight():
    batch = collate(Pair(), ())
    assert (batch.tokens.tolist(), batch.labels.tolist()) == ([0], [-100])
    assert (batch.samples.tolist(), batch.lengths) == ([-1], (1,))
    assert (batch.loss_tokens, batch.real_tokens) == (0, 0)


@pytest.mark.parametrize("loads", [(), (Load(3, 1.0), Load(3, 2.0))])
def test_a_sample_to_evaluate_on_may_be_longer_than_what_a_step_takes(loads):
    split = Pair()
    split.lengths, split.loss_tokens = np.array([3, 4]), np.array([1, 3])
    seen = [
        micro
        for replica in (0, 1)
        for micros in whole_split(split, 2, Placement(replica, 2, capacity=3, loads=loads))
        for micro in micros
    ]
    assert sum(micro.real_tokens for micro in seen) == 7
    assert max(micro.real_tokens for micro in seen) == 4
