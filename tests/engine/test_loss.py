import math

import pytest
import torch

from train.engine import loss as losses
from train.engine.loss import summed_cross_entropy


@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_the_sum_and_its_gradient_are_those_of_torch(count, monkeypatch):
    monkeypatch.setattr(losses, "LOSS_ROWS", 16)
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn((count, 11), generator=generator, requires_grad=True)
    targets = torch.randint(0, 11, (count,), generator=generator)
    wanted = torch.nn.functional.cross_entropy(raw, targets, reduction="sum") * 0.25
    (slope,) = torch.autograd.grad(wanted, raw)
    scaled, total = summed_cross_entropy(raw * 1.0, targets, 0.25)
    assert float(total.detach()) == pytest.approx(4 * float(wanted.detach()), rel=1e-6)
    (found,) = torch.autograd.grad(scaled, raw)
    torch.testing.assert_close(found, slope, rtol=1e-5, atol=1e-7)


def test_the_loss_of_pairs_and_its_gradient_are_those_of_torch(monkeypatch):
    monkeypatch.setattr(losses, "LOSS_ROWS", 4)
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn((10, 11), generator=generator, requires_grad=True)
    targets = torch.randint(0, 11, (10,), generator=generator)
    texts = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 3, 3])
    reference = torch.tensor([0.7, -2.0], dtype=torch.float64)
    logs = torch.log_softmax(raw, -1).gather(1, targets[:, None])[:, 0].double()
    sums = torch.zeros(4, dtype=torch.float64).index_add(0, texts, logs)
    margins = losses.BETA * (sums[0::2] - sums[1::2] - reference)
    wanted = -torch.nn.functional.logsigmoid(margins).sum() * 0.25
    (slope,) = torch.autograd.grad(wanted, raw)
    scaled, total = losses.pair_loss(raw * 1.0, targets, texts, reference, 0.25)
    assert float(total) == pytest.approx(4 * float(wanted.detach()), rel=1e-6)
    (found,) = torch.autograd.grad(scaled, raw)
    torch.testing.assert_close(found, slope, rtol=1e-5, atol=1e-7)


def test_half_precision_logits_lose_nothing_in_the_sum():
    logits = torch.randn((300, 50), generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.arange(300) % 50
    wanted = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum")
    _, total = summed_cross_entropy(logits.clone(), targets, 1.0)
    assert float(total) == pytest.approx(float(wanted), rel=1e-6)


def test_a_bad_loss_makes_the_whole_gradient_bad():
    raw = torch.zeros((3, 4), requires_grad=True)
    shift = torch.zeros((3, 4))
    shift[1, 2] = -math.inf
    scaled, total = summed_cross_entropy(raw + shift, torch.tensor([0, 2, 1]), 1.0)
    assert math.isinf(float(total))
    (slope,) = torch.autograd.grad(scaled, raw)
    assert slope.isnan().all()
