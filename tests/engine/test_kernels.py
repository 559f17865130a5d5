"""Liger's kernels against the plain modules: run by Triton's interpreter, in their own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
import transformers

from tests.engine.test_model import SIZE
from tests.support.launching import ROOT
from train.engine import kernels

WAYS = [
    *(f"mistral, {way}" for way in ("zero0", "selective", "lora", "lora, selective", "padded")),
    *(f"{family}, zero3" for family in (
        "mistral", "llama", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3",
    )),
]  # fmt: skip
HEADS = ["head, fp32", "head, fp32, frozen", "head, bf16", "head, bf16, frozen"]
installed = find_spec("liger_kernel") is not None and find_spec("triton") is not None
needs_liger = pytest.mark.skipif(not installed, reason="liger-kernel or triton is not installed")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("kernels") / "found.json"
    words = [sys.executable, "tests/engine/kernels_worker.py", str(out)]
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@needs_liger
@pytest.mark.parametrize("way", WAYS)
def test_a_step_with_the_kernels_is_the_plain_step(found, way):
    row = found[way]
    assert row["loss"] < 1e-6
    assert row["norm"] < 1e-6
    assert row["weights"] < 1e-5


@needs_liger
def test_a_step_in_bf16_is_within_the_tolerances_of_bf16(found):
    row = found["mistral, bf16"]
    assert row["loss"] < 2e-3
    assert row["norm"] < 2e-2
    assert row["weights"] < 0.2


@needs_liger
@pytest.mark.parametrize("way", WAYS)
def test_each_kernel_that_the_notice_names_has_run(found, way):
    notice = found[way]["notices"][-1]
    expected = {
        "RMSNorm": "_rms_norm_backward_kernel",
        "SwiGLU": "_swiglu_backward_kernel",
        "GeGLU": "_geglu_tanh_backward_kernel",
        "fused linear cross-entropy": "liger_cross_entropy_kernel",
    }
    assert notice.startswith("Liger kernels: RMSNorm, ")
    for name, kernel in expected.items():
        assert (name in notice) == (kernel in found[way]["kernels"]), (name, notice)


@needs_liger
def test_capped_logits_and_padded_rows_keep_the_plain_loss(found):
    fused = [way for way in WAYS if "cross-entropy" in found[way]["notices"][-1]]
    assert set(WAYS) - set(fused) == {"gemma2, zero3", "mistral, padded"}


@needs_liger
@pytest.mark.parametrize("case", HEADS)
def test_a_fused_head_is_as_near_to_fp64_as_the_chunked_loss(found, case):
    row = found[case]
    assert abs(row["loss"]) < (1e-6 if "fp32" in case else 2e-3)
    assert abs(row["total"]) < (1e-6 if "fp32" in case else 2e-3)
    leaves = ["hidden"] if "frozen" in case else ["hidden", "weight", "bias"]
    for leaf in leaves:
        # bf16: Liger scales a gradient that is rounded already, so it is rounded twice.
        assert row[leaf] < 2 * row[f"plain {leaf}"], (leaf, row)


@needs_liger
def test_a_loss_that_is_not_finite_is_refused_with_its_gradient(found):
    assert "is not finite in samples [" in found["refused"]
    assert "(loss nan, gradient norm nan)" in found["refused"]


@needs_liger
def test_transformers_keeps_its_own_classes_and_functions(found):
    assert found["changed"] == []


def test_a_cpu_and_an_unknown_model_keep_the_plain_modules():
    assert not kernels.liger_supported("llama", "cpu")
    assert not kernels.liger_supported("bloom", "cuda")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZE))
    assert kernels.fuse(model, torch.device("cpu"), supports_logits_to_keep=True) == (None, ())
    assert not any("forward" in vars(module) for module in model.modules())


def test_on_a_gpu_without_liger_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZE))
    assert kernels.fuse(model, torch.device("cuda"), supports_logits_to_keep=True) == (
        None,
        (kernels.HINT,),
    )
    assert "pip install 'liger-kernel" in kernels.HINT


def test_on_a_gpu_where_no_kernel_compiles_the_plain_modules_stay_and_one_line_says_why(
    monkeypatch,
):
    def no_compiler():
        raise RuntimeError("Failed to find C compiler. Please specify via CC.\nTraceback")

    monkeypatch.setattr(kernels, "_installed", lambda: True)
    monkeypatch.setattr(kernels, "refused", lambda: kernels.tried(no_compiler))
    assert not kernels.liger_supported("llama", "cuda")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZE))
    head, (notice,) = kernels.fuse(model, torch.device("cuda"), supports_logits_to_keep=True)
    assert head is None
    assert "do not run here (Failed to find C compiler. Please specify via CC.)" in notice
    assert not any("forward" in vars(module) for module in model.modules())
    assert kernels.tried(lambda: None) == ""


@pytest.mark.parametrize(
    ("rows", "dtype", "trained", "fused"),
    [
        (1024, torch.bfloat16, False, False),
        (1025, torch.bfloat16, False, True),
        (1025 + 2 * 64, torch.bfloat16, True, True),
        (1024 + 2 * 64, torch.bfloat16, True, False),
        (1025, torch.float32, True, True),
        (0, torch.float32, True, False),
    ],
)
def test_the_head_is_fused_where_that_needs_less_memory(rows, dtype, trained, fused):
    head = kernels.FusedHead(torch.nn.Linear(64, 100, dtype=dtype).requires_grad_(trained))
    assert head._saves(torch.zeros(rows, 64, dtype=dtype)) == fused
