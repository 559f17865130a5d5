import pytest
import torch

from train.engine.attention import packed_attention

LENGTHS = (1, 7, 20, 3)


def inputs(heads: int, key_heads: int):
    generator = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)
    shapes = [(1, heads, total, 8), (1, key_heads, total, 8), (1, key_heads, total, 8)]
    return [torch.randn(s, generator=generator, requires_grad=True) for s in shapes]


def dense(query, key, value, scale, window, softcap):
    """The same attention with every score written out and one big mask."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    owner = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    place = torch.arange(sum(LENGTHS))
    distance = place[:, None] - place[None, :]
    seen = (owner[:, None] == owner[None, :]) & (distance >= 0) & (distance < (window or 10**6))
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("window", [None, 5, 100])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_packed_attention_is_dense_attention_with_a_block_diagonal_mask(heads, window, softcap):
    query, key, value = inputs(*heads)
    bounds = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
    found, weights = packed_attention(
        torch.nn.Identity(), query, key, value, None, cu_seq_lens_q=bounds, max_length_q=20,
        scaling=0.3, sliding_window=window, softcap=softcap,
    )  # fmt: skip
    wanted = dense(query, key, value, 0.3, window, softcap)
    assert weights is None
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    push = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(found, (query, key, value), push)
    theirs = torch.autograd.grad(wanted, (query, key, value), push)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_device_is_not_waited_for_where_the_boundaries_are_known_on_the_host(softcap):
    query, key, value = inputs(4, 2)
    unread = torch.empty(len(LENGTHS) + 1, dtype=torch.int32, device="meta")  # cannot be read
    segments = (0, *torch.tensor(LENGTHS).cumsum(0).tolist())
    found, _ = packed_attention(
        torch.nn.Identity(), query, key, value, None, cu_seq_lens_q=unread, max_length_q=20,
        segments=segments, scaling=0.3, softcap=softcap,
    )  # fmt: skip
    wanted = dense(query, key, value, 0.3, None, softcap)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("knows_groups", [True, False])
@pytest.mark.parametrize("window", [None, 5])
def test_on_a_gpu_torchs_variable_length_attention_is_called_with_these_shapes(
    knows_groups, window, monkeypatch
):
    from torch._subclasses.fake_tensor import FakeTensorMode

    from train.engine import attention

    monkeypatch.setattr(attention, "knows_groups", lambda: knows_groups)
    with FakeTensorMode():
        query = torch.empty(1, 4, 31, 8, device="cuda", dtype=torch.bfloat16)
        key = torch.empty(1, 2, 31, 8, device="cuda", dtype=torch.bfloat16)
        bounds = torch.empty(5, device="cuda", dtype=torch.int32)
        found, _ = packed_attention(
            torch.nn.Identity(), query, key, key, None, cu_seq_lens_q=bounds, max_length_q=20,
            sliding_window=window,
        )  # fmt: skip
    assert found.shape == (1, 31, 4, 8)
    assert found.device.type == "cuda"
