"""Attention over a row that ranks share against attention over the whole row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine import test_model as models
from tests.support.ranks import together
from train.data.divide import divide, places
from train.engine.attention import packed_attention
from train.engine.replica import SharedRow

ROWS = ([40, 1, 7, 20, 3], [100], [1, 2], [10, 10, 10, 10])
KINDS = [(4, None, None), (2, 9, None), (2, None, 2.0), (1, 9, 2.0), (2, 200, None)]


def tensors(total: int, key_heads: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(1, n, total, 8, generator=draw) for n in (4, key_heads, key_heads, 4)]


def attend(lengths, query, key, value, window, softcap, shared_row=None):
    bounds = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    return packed_attention(
        torch.nn.Identity(), query, key, value, None, cu_seq_lens_q=bounds,
        max_length_q=max(lengths), sliding_window=window, softcap=softcap, shared_row=shared_row,
    )[0]  # fmt: skip


def results(lengths, inputs, push, window, softcap, shared_row=None):
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    found = attend(lengths, *inputs, window, softcap, shared_row)
    return [found.transpose(1, 2), *torch.autograd.grad(found.transpose(1, 2), inputs, push)]


def compare(gang, out: Path) -> None:
    """Write the largest difference of any result or gradient of this rank's tokens."""
    replica = gang.replica(tuple(range(gang.world.size)))
    worst = 0.0
    for row in ROWS:
        division = divide(row, gang.world.size)
        stretches = division[gang.world.rank]
        own = torch.from_numpy(places(stretches))
        filler = not len(own)
        lengths = [s.last - s.first for s in stretches] or [1]
        for key_heads, window, softcap in KINDS:
            *inputs, push = tensors(sum(row), key_heads)
            wanted = results(row, inputs, push, window, softcap)
            shared = SharedRow(replica, division, gang.device)
            at = torch.zeros(1, dtype=torch.int64) if filler else own
            mine = [tensor[:, :, at] for tensor in (*inputs, push)]
            found = results(lengths, mine[:-1], mine[-1], window, softcap, shared)
            if filler:
                continue
            for one, other in zip(found, wanted, strict=True):
                worst = max(worst, float((one - other[:, :, own]).detach().abs().max()))
    worst = max(gang.gather(worst))
    if gang.world.is_main:
        out.write_text(json.dumps(worst))


def train(gang, folders: dict[str, Path], out: Path) -> None:
    """Write the losses of three steps of each model, its rows shared by all ranks."""
    found = {
        name: models.losses(
            models.engine(gang, folder, words="--use-lora" if name == "phi" else "")
        )
        for name, folder in folders.items()
    }
    if gang.world.is_main:
        (out / f"{gang.world.size}.json").write_text(json.dumps(found))


def test_a_shared_row_trains_every_family_as_a_whole_one(tmp_path):
    names = [name for name in models.FAMILIES if name != "bloom"]
    folders = {name: models.make(name, tmp_path / name) for name in names}
    for ranks in (1, 3):
        together(ranks, train, folders, tmp_path, timeout=300)
    whole, shared = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 3))
    for name in names:
        # One step moves these losses by a tenth, and rounding with it.
        assert shared[name] == pytest.approx(whole[name], rel=5e-6), name
        assert shared[name][0] == pytest.approx(whole[name][0], rel=1e-6), name
        assert len(set(whole[name])) == 3


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_a_shared_row_is_attended_as_a_whole_one(ranks, tmp_path):
    out = tmp_path / "worst.json"
    together(ranks, compare, out, timeout=120)
    assert json.loads(out.read_text()) < 5e-6
