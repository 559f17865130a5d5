"""Every Triton kernel that a run on GPUs starts, compiled for their architectures: none is run."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

installed = find_spec("liger_kernel") is not None and find_spec("triton") is not None
pytestmark = pytest.mark.skipif(not installed, reason="liger-kernel or triton is not installed")

TARGETS = [("cuda", 80, 32), ("cuda", 90, 32), ("cuda", 100, 32),
           ("hip", "gfx90a", 64), ("hip", "gfx942", 64)]  # fmt: skip
KERNELS = {
    "_rms_norm_forward_kernel", "_rms_norm_backward_kernel",
    "_swiglu_forward_kernel", "_swiglu_backward_kernel",
    "_geglu_tanh_forward_kernel", "_geglu_tanh_backward_kernel", "liger_cross_entropy_kernel",
}  # fmt: skip
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64"}


@pytest.fixture(scope="module")
def starts():
    """The kernels that a step of each kind starts, with what they are given, by name and types."""
    from liger_kernel import ops
    from triton.runtime.jit import JITFunction

    found = {}

    def note(kernel, *args, grid=None, warmup=None, **named):
        given = dict(zip(kernel.arg_names, args, strict=False)) | named
        types = tuple(one.dtype for one in args if isinstance(one, torch.Tensor))
        found[kernel.__name__, types] = kernel, given

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", note)
        for dtype in (torch.float32, torch.bfloat16):
            hidden, norm, head = (
                torch.ones(*size, dtype=dtype, requires_grad=True)
                for size in ((64, 128), (128,), (256, 128))
            )
            for casting in ("llama", "gemma"):
                out = ops.LigerRMSNormFunction.apply(hidden, norm, 1e-6, 0.0, casting, False)
                out.sum().backward()
            for product in (ops.LigerSiLUMulFunction, ops.LigerGELUMulFunction):
                product.apply(hidden, hidden).sum().backward()
            targets = torch.zeros(64, dtype=torch.int64)
            ops.LigerFusedLinearCrossEntropyFunction.apply(hidden, head, targets)
    return found


def test_the_kernels_are_those_of_a_run(starts):
    assert {name for name, _ in starts} == KERNELS


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target[1]))
def test_every_kernel_is_compiled_to_the_end(starts, target, tmp_path, monkeypatch):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    for kernel, given in starts.values():
        signature, constants = {}, {}
        for one in kernel.params:
            value = given.get(one.name, one.default if one.has_default else None)
            if one.is_constexpr or value is None:
                constants[one.name], signature[one.name] = value, "constexpr"
            elif isinstance(value, torch.Tensor):
                signature[one.name] = TYPES[value.dtype]
            else:
                signature[one.name] = {bool: "i1", int: "i32", float: "fp32"}[type(value)]
        options = {key: given[key] for key in ("num_warps", "num_stages") if key in given}
        made = triton.compile(
            ASTSource(kernel, signature, constants), target=GPUTarget(*target), options=options
        )
        assert made.asm["cubin" if target[0] == "cuda" else "hsaco"]
