"""The probe of attention at a run's start, with attentions that are right, wrong, or refuse."""

from types import SimpleNamespace

import pytest
import torch

from train.engine import attention
from train.engine.attention import packed_attention
from train.engine.attention_probe import disagreement, kernel_works

CPU = torch.device("cpu")


def probed(attend, window=None, heads=(4, 2, 64), dtype=torch.bfloat16, *, ends=False):
    return disagreement(attend, CPU, dtype, heads, window, ends=ends)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("heads", [(4, 4, 64), (4, 2, 128), (4, 1, 80)])
def test_this_projects_attention_agrees(dtype, window, heads):
    for ends in (False, True):
        assert probed(packed_attention, window, heads, dtype, ends=ends) == ""


def test_the_kernel_works_where_every_comparison_agrees():
    assert kernel_works(CPU, 64) == (True, ())


def blind(*tensors, sliding_window=None, **options):
    """A kernel that takes a window for none."""
    return packed_attention(*tensors, sliding_window=None, **options)


def short(*tensors, sliding_window=None, **options):
    """A kernel whose window is one token less."""
    window = sliding_window and sliding_window - 1
    return packed_attention(*tensors, sliding_window=window, **options)


def crossing(module, *tensors, cu_seq_lens_q, max_length_q, **options):
    """A kernel that takes all samples for one."""
    whole = cu_seq_lens_q[[0, -1]]
    return packed_attention(
        module, *tensors, cu_seq_lens_q=whole, max_length_q=int(whole[1]), **options
    )


def staring(module, query, key, value, mask, **options):
    """A kernel without a causal mask, as one that aligns it elsewhere."""
    turned = [one.flip(2) for one in (query, key, value)]
    bounds = options.pop("cu_seq_lens_q")
    back = bounds[-1] - bounds.flip(0)
    found, _ = packed_attention(module, *turned, mask, cu_seq_lens_q=back, **options)
    return found.flip(1), None


def early(*tensors, shared_row=None, cu_seq_lens_q, **options):
    """A kernel that aligns a causal mask at the top left: queries see the first keys only."""
    if shared_row is None:
        return packed_attention(*tensors, cu_seq_lens_q=cu_seq_lens_q, **options)
    module, query, key, value, mask = tensors
    begins = shared_row.bounds[:-1].tolist()
    counts = cu_seq_lens_q.diff().tolist()
    rows = [b + n for b, count in zip(begins, counts, strict=True) for n in range(count)]
    return packed_attention(
        module, query, key[:, :, rows], value[:, :, rows], mask, cu_seq_lens_q=cu_seq_lens_q,
        **options,
    )  # fmt: skip


def test_a_mask_aligned_at_the_top_left_is_found_out():
    assert probed(early) == ""
    assert probed(early, ends=True).endswith("without a window where keys are more than queries")
    assert not kernel_works(CPU, 64, early)[0]


def half(module, query, key, value, mask, **options):
    """A kernel that forgets the keys' gradient."""
    return packed_attention(module, query, key * 0.5 + key.detach() * 0.5, value, mask, **options)


@pytest.mark.parametrize(
    ("wrong", "window", "part"),
    [
        (blind, 16, "its output is off by"),
        (short, 16, "with a window"),
        (crossing, None, "its output is off by"),
        (staring, None, "without a window"),
        (half, None, "its keys' gradient is off by 50%"),
    ],
)
def test_an_attention_that_is_wrong_is_found_out(wrong, window, part):
    assert part in probed(wrong, window)
    works, (notice,) = kernel_works(CPU, 64, wrong)
    assert not works
    assert "each sample is attended to by itself" in notice


def test_heads_that_no_kernel_takes_are_told():
    works, (notice,) = kernel_works(CPU, 90)
    assert not works
    assert notice.startswith("heads are 90 wide, which is no multiple of 8")


def test_one_that_refuses_is_told_in_its_own_words():
    def refuses(*_, **__):
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nmore")

    assert probed(refuses) == "FlashAttention only supports Ampere GPUs or newer."


def test_without_the_kernel_each_sample_is_attended_to_by_itself(monkeypatch):
    """With queries that say they were on a GPU, so that the kernel would be called."""
    query = torch.randn(1, 4, 31, 8)
    bounds = torch.tensor([0, 11, 31], dtype=torch.int32)
    monkeypatch.setattr(attention, "_fits_kernel", lambda query: True)
    monkeypatch.setattr(attention, "_varlen", lambda *_: "the kernel")
    options = {"cu_seq_lens_q": bounds, "max_length_q": 20}
    rows = (torch.nn.Identity(), query, query, query, None)
    assert packed_attention(*rows, **options)[0] == "the kernel"
    assert packed_attention(*rows, **options, kernel=False)[0].shape == (1, 31, 4, 8)


@pytest.mark.parametrize(
    ("dtype", "width", "fits"),
    [
        (torch.bfloat16, 128, True),
        (torch.bfloat16, 90, False),
        (torch.bfloat16, 512, False),
        (torch.float32, 128, False),
    ],
)
def test_the_kernel_is_called_for_what_it_takes(dtype, width, fits):
    query = SimpleNamespace(is_cuda=True, dtype=dtype, shape=(1, 4, 31, width))
    assert attention._fits_kernel(query) is fits


def test_fp32_on_a_gpu_repeats_grouped_keys_so_that_no_kernel_keeps_every_score():
    from torch._subclasses.fake_tensor import FakeTensorMode

    seen = []

    def watch(query, key, value, **options):
        seen.append((query.shape[1], key.shape[1], options.get("enable_gqa")))
        return query

    with FakeTensorMode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "scaled_dot_product_attention", watch)
        query = torch.empty(1, 4, 9, 8, device="cuda")
        key = torch.empty(1, 2, 9, 8, device="cuda")
        attention._segment(query, key, key, scale=1.0, window=None, softcap=None)
        host = [one.cpu() for one in (query, key)]
        attention._segment(host[0], host[1], host[1], scale=1.0, window=None, softcap=None)
    assert seen == [(4, 4, False), (4, 2, True)]
