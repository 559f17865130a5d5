"""A checkpoint's way from a device to the host, in pieces of a bounded buffer."""

import pytest
import torch

from train.engine.saver import copy_through


@pytest.mark.parametrize("elements", [0, 1, 7, 8, 9, 100])
@pytest.mark.parametrize("size", [None, 1, 8, 1000])
def test_all_of_it_arrives_whatever_the_buffer_holds(elements, size):
    source = torch.arange(elements, dtype=torch.float32)
    target = torch.full((elements,), -1.0)
    copy_through(None if size is None else torch.empty(size), source, target)
    assert torch.equal(source, target)
