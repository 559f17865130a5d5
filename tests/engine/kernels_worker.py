"""Train small models with and without Liger's kernels, which Triton's interpreter runs on the CPU.

    TRITON_INTERPRET=1 python tests/engine/kernels_worker.py OUT [CASE ...]

Writes to the JSON file OUT what was found, by family and way.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import deepspeed
import numpy as np
import torch
import triton.language as tl
from liger_kernel.ops import geglu, rms_norm
from transformers.models.mistral import modeling_mistral
from triton.runtime import interpreter

from tests.engine.test_model import configured, make
from tests.support.fakes import FakeSplit
from train.config import World
from train.data.feed import Placement, step_batch
from train.engine import kernels
from train.engine import start as starts
from train.engine.gang import Gang, connect
from train.engine.loss import summed_cross_entropy
from train.engine.step import Engine
from train.errors import NonFiniteError
from train.planning import Plan, read_ds_config, render, shape_of

# Way -> (ZeRO stage, recomputation, words).
WAYS = {
    "zero0": (0, "none", ""),
    "selective": (2, "selective", ""),
    "lora": (3, "full", "--use-lora --lora-r 4 --lora-dropout 0.1"),
    "lora, selective": (2, "selective", "--use-lora --lora-r 4"),
    "padded": (2, "none", ""),
    "bf16": (2, "none", "--precision bf16"),
    "zero3": (3, "none", ""),
}
FAMILIES = ("mistral", "llama", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3")
CASES = [f"mistral, {way}" for way in WAYS] + [f"{family}, zero3" for family in FAMILIES[1:]]
SPLIT, BATCH = FakeSplit(np.random.default_rng(1).integers(3, 9, 20).astype(np.int32)), 4


def complete_interpreter() -> set[str]:
    """Give Triton's interpreter what its compiler has; return the names of the kernels it runs.

    It lacks fractions as arguments, rounding to and arithmetic in bf16, and the device's rsqrt
    and tanh.
    """
    builders = interpreter.InterpreterBuilder
    convert, cast, binary = interpreter._implicit_cvt, builders.cast_impl, builders.binary_op
    run, names = interpreter.GridExecutor.__call__, set()

    def converted(argument):
        if isinstance(argument, float):
            handle = interpreter.TensorHandle(np.array([argument], np.float32), tl.float32)
            return tl.tensor(handle, tl.float32)
        return convert(argument)

    def rounded(builder, source, target):
        if (source.dtype.scalar, target.scalar) != (tl.float32, tl.bfloat16):
            return cast(builder, source, target)
        near = torch.from_numpy(np.asarray(source.data)).bfloat16().view(torch.uint16).numpy()
        return interpreter.TensorHandle(near, tl.bfloat16)

    def widened(builder, left, right, operation):
        if left.dtype.scalar != tl.bfloat16:
            return binary(builder, left, right, operation)
        wide = [builder.cast_impl(handle, tl.float32) for handle in (left, right)]
        return builder.cast_impl(binary(builder, *wide, operation), tl.bfloat16)

    def noted(executor, *args, **kwargs):
        names.add(executor.fn.__name__)
        return run(executor, *args, **kwargs)

    interpreter._implicit_cvt, interpreter.GridExecutor.__call__ = converted, noted
    builders.cast_impl, builders.binary_op = rounded, widened
    rms_norm.rsqrt = lambda x: tl.rsqrt(x)
    geglu.tanh = lambda x: 2 * tl.sigmoid(2 * x) - 1
    return names


def trace(gang: Gang, folder: Path, way: str, fused: bool):
    """Take a step and evaluate; return the engine, two losses, a norm and the weights' move."""
    zero, recompute, words = WAYS[way]
    config = configured(folder, words)
    plan = Plan(zero=zero, micro_tokens=24, recompute=recompute)
    shape = shape_of(json.loads((folder / "config.json").read_text()))
    ds = read_ds_config(Path("ds_configs/auto.json"))
    rendered = render(plan, shape, config.model, config.optimizer, ds)
    engine = starts.start(gang, config, folder, plan, rendered, packed=way != "padded", fused=fused)
    layout = Placement(0, 1, capacity=24, padded=way == "padded")
    before = trained_weights(engine)
    first, last = (step_batch(SPLIT, 0, BATCH, step, layout) for step in range(2))
    found = engine.step(0, first.micros, first.loss_tokens, 0.1)
    after, tokens = engine.evaluate([last.micros])
    moved = trained_weights(engine) - before
    return engine, np.array([found.loss, after / tokens]), found.grad_norm, moved


def trained_weights(engine: Engine) -> torch.Tensor:
    trained = [p for p in engine.model.module.parameters() if p.requires_grad]
    sharded = [p for p in trained if hasattr(p, "ds_id")]
    with deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded)):
        return torch.cat([p.detach().double().flatten() for p in trained])


def compare(gang: Gang, folder: Path, way: str, ran: set[str]) -> dict[str, object]:
    """Take the same step plainly and with the kernels; return the relative differences."""
    _, losses, norm, moved = trace(gang, folder, way, fused=False)
    assert not ran, f"the plain step ran {ran}"
    engine, *ours = trace(gang, folder, way, fused=True)
    found: dict[str, object] = {
        "loss": float(np.abs(ours[0] / losses - 1).max()),
        "norm": abs(ours[1] / norm - 1),
        "weights": float((ours[2] - moved).norm() / moved.norm()),
        "kernels": sorted(ran),
        "notices": list(engine.model.notices),
    }
    ran.clear()
    return found


def refused(gang: Gang, folder: Path) -> str:
    """Say how a step is refused when a weight of the head is infinite."""
    engine, *_ = trace(gang, folder, "zero0", fused=True)
    share = step_batch(SPLIT, 0, BATCH, 1, Placement(0, 1, 24))
    with torch.no_grad():
        engine.model.module.lm_head.weight[3] = float("inf")
    try:
        engine.step(1, share.micros, share.loss_tokens, 1e-3)
    except NonFiniteError as error:
        return str(error)
    return "applied"


def head(dtype: torch.dtype, trained: bool) -> dict[str, float]:
    """Return how far the loss and gradients of a head with a bias are from those in fp64."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 300, dtype=dtype).requires_grad_(trained)
    hidden = (4 * torch.randn(1, 120, 16)).to(dtype).requires_grad_()
    targets, leaves = torch.randint(0, 300, (120,)), [hidden, *linear.parameters()]
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    logits = torch.nn.functional.linear(wide[0][0], wide[1], wide[2])
    exact = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    (exact * 0.37).backward()
    plain, _ = summed_cross_entropy(linear(hidden)[0], targets, 0.37)
    fused = kernels.FusedHead(linear)
    fused.set_targets(targets, 0.37)
    loss, total = linear(hidden)
    found = {
        "loss": abs(float(loss / exact / 0.37 - 1)),
        "total": abs(float(total / exact - 1)),
    }
    for name, value in (("plain ", plain), ("", loss)):
        given = torch.autograd.grad(value, [leaf for leaf in leaves if leaf.requires_grad])
        for leaf, gradient, right in zip(("hidden", "weight", "bias"), given, wide, strict=False):
            found[name + leaf] = float((gradient.double() - right.grad).norm() / right.grad.norm())
    assert linear(hidden).shape == (1, 120, 300), "a head that is not asked gives logits"
    return found


def main() -> None:
    os.environ["LOCAL_RANK"] = "0"
    torch.set_num_threads(1)
    gang = connect(World(), dict(os.environ))
    ran = complete_interpreter()
    # A slice of 8 rows, CPUs, and updates in proportion to the gradient, noise included.
    kernels.LOSS_ROWS, kernels.DEVICES, starts.EPS = 8, ("cpu",), 1.0
    before = dict(vars(modeling_mistral))
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    found: dict[str, object] = {
        f"head, {name}{'' if trained else ', frozen'}": head(dtype, trained)
        for name, dtype in kinds.items()
        for trained in (True, False)
    }
    ran.clear()
    with tempfile.TemporaryDirectory() as base:
        folders = {family: make(family, Path(base) / family) for family in FAMILIES}
        for case in sys.argv[2:] or CASES:
            family, way = case.split(", ", 1)
            found[case] = compare(gang, folders[family], way, ran)
        found["refused"] = refused(gang, folders["mistral"])
    found["changed"] = [
        name for name, value in vars(modeling_mistral).items() if before[name] is not value
    ]
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1))
    gang.close()


if __name__ == "__main__":
    main()
