"""Every way of taking a step against the plain one: fp32, one sample at a time, torch alone.

    python bench/numerics.py [--steps N] [--out FILE]

The reference packs nothing, pads nothing and fuses nothing: each sample goes alone through
transformers' eager attention, torch's cross-entropy, clipping and AdamW. The other ways are the
engine's. The model is a small Mistral with grouped heads and a window shorter than most samples.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from bench import record
from bench.rig import Rig, join, preset_data, random_model, rig
from train.data.feed import StepBatch, step_batch
from train.engine import kernels
from train.engine.gang import Gang
from train.engine.start import BETAS, EPS, parameter_groups
from train.engine.step import Engine
from train.loop import TrainingJob

LR, CLIP, DECAY = 1e-3, 1.0, 0.1
BASE = f"--batch-size 12 --block-size 256 --lr {LR} --weight-decay {DECAY} --precision fp32 "
BASE += "--ds-config ds_configs/auto.json --pin micro_tokens=600 "
# Way -> (arguments, largest relative difference allowed of losses, of gradient norms, and of the
# weights' distance from the reference's in units of how far these have moved).
FP32, BF16 = (1e-6, 1e-4, 1e-3), (2e-3, 2e-2, 0.2)
WAYS: Mapping[str, tuple[str, tuple[float, float, float]]] = {
    "plain fp64": ("", FP32),
    "packed": ("zero=0 recompute=none offload=none", FP32),
    "packed, ZeRO 3": ("zero=3 recompute=none offload=none", FP32),
    "padded": ("zero=0 recompute=none offload=none", FP32),
    "recomputed, selective": ("zero=2 recompute=selective offload=none", FP32),
    "recomputed, full": ("zero=2 recompute=full offload=none", FP32),
    "offloaded optimizer": ("zero=2 recompute=none offload=optimizer", FP32),
    "offloaded, all": ("zero=3 recompute=none offload=all", FP32),
    "packed in bf16": ("zero=2 recompute=none offload=none --precision bf16", BF16),
    "packed in bf16, recomputed": ("zero=3 recompute=full offload=none --precision bf16", BF16),
    "Liger": ("zero=3 recompute=none offload=none", FP32),
    "Liger, recomputed": ("zero=2 recompute=selective offload=none", FP32),
    "Liger in bf16": ("zero=2 recompute=none offload=none --precision bf16", BF16),
}
SIZES = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 4096, "sliding_window": 96,
    "max_position_embeddings": 1024,
}  # fmt: skip


@dataclass(frozen=True)
class Trace:
    """What a way found: a loss and a gradient norm a step, and the weights at the end."""

    losses: Sequence[float]
    norms: Sequence[float]
    weights: Mapping[str, torch.Tensor]


def reference(folder: Path, shares: Sequence[StepBatch], device: torch.device, dtype: Any) -> Trace:
    """Train by the plainest code there is."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    )
    model.to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, DECAY), lr=LR, betas=BETAS, eps=EPS)
    losses, norms = [], []
    for share in shares:
        total = 0.0
        for micro in share.micros:
            ids, labels = (torch.tensor(a, device=device) for a in (micro.tokens, micro.labels))
            parts = zip(ids.split(micro.lengths), labels.split(micro.lengths), strict=True)
            for tokens, wanted in parts:
                logits = model(input_ids=tokens[None], use_cache=False).logits[0]
                loss = cross_entropy(logits, wanted, ignore_index=-100, reduction="sum")
                (loss / share.loss_tokens).backward()
                total += loss.item()
        losses.append(total / share.loss_tokens)
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        optimizer.step()
        optimizer.zero_grad()
    return Trace(losses, norms, {k: v.detach().double().cpu() for k, v in model.named_parameters()})


def engine_trace(engine: Engine, shares: Sequence[StepBatch]) -> Trace:
    """Train by the engine's steps."""
    found = [engine.step(i, s.micros, s.loss_tokens, LR) for i, s in enumerate(shares)]
    parameters = dict(engine.model.module.named_parameters())
    sharded = [p for p in parameters.values() if hasattr(p, "ds_id")]
    with deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded)):
        weights = {name: p.detach().double().cpu() for name, p in parameters.items()}
    engine.deepspeed.destroy()
    return Trace([f.loss for f in found], [f.grad_norm for f in found], weights)


def shares_of(job: TrainingJob, steps: int) -> list[StepBatch]:
    data = job.config.data
    args = (job.train, data.seed, data.batch_size)
    return [step_batch(*args, step, job.placement) for step in range(steps)]


def compare(way: str, found: Trace, base: Trace, start: Mapping[str, torch.Tensor]) -> Any:
    """Return a row: three relative differences, what is allowed, whether all are met."""
    moved = sum(float((base.weights[k] - start[k]).square().sum()) for k in start) ** 0.5
    away = sum(float((base.weights[k] - found.weights[k]).square().sum()) for k in start) ** 0.5
    sizes = (
        max(abs(a / b - 1) for a, b in zip(found.losses, base.losses, strict=True)),
        max(abs(a / b - 1) for a, b in zip(found.norms, base.norms, strict=True)),
        away / moved,
    )
    allowed = WAYS[way][1]
    names = ("loss", "norm", "weights")
    row: dict[str, Any] = {"way": way}
    for name, size, limit in zip(names, sizes, allowed, strict=True):
        row |= {name: size, f"{name}_allowed": limit}
    return row | {"met": all(size <= limit for size, limit in zip(sizes, allowed, strict=True))}


def measure(gang: Gang, folder: Path, steps: int, names: Sequence[str]) -> list[dict[str, Any]]:
    """Take the same steps in each way and compare."""
    model = random_model(folder / "model", "fp32", **SIZES)
    words = ["--model-name-or-path", str(model), "--dataset-name-or-path", str(preset_data())]

    def prepared(way: str) -> Rig:
        return rig(gang, [*words, *BASE.split(), *WAYS[way][0].split()])

    first = prepared("packed")
    engine = first.engine()
    shares = shares_of(first.job(engine), steps)
    engine.deepspeed.destroy()
    start = reference(model, [], gang.device, torch.float32).weights
    base = reference(model, shares, gang.device, torch.float32)
    rows = []
    for way in names:
        if way == "plain fp64":
            found = reference(model, shares, gang.device, torch.float64)
        else:
            run = prepared(way)
            engine = run.engine(packed=way != "padded", fused=way.startswith("Liger"))
            found = engine_trace(engine, shares_of(run.job(engine), steps))
        rows.append(compare(way, found, base, start))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description="every way against the plain fp32 step")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps")
    parser.add_argument("--out", help="where to write the results instead of bench/results")
    given = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    names = list(WAYS)
    if shutil.which("g++") is None:
        names = [name for name in names if "offload" not in name]
        print("no g++: DeepSpeed's CPU Adam cannot be built, so offloading is left out")
    gang = join()
    if not kernels.liger_supported("mistral", gang.device.type):
        names = [name for name in names if "Liger" not in name]
        print("no GPU with liger-kernel: its ways are left out")
    kernels.LOSS_ROWS = 64  # short micro-batches, so that their loss is fused, too
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(gang, Path(folder), given.steps, names)
    print(record.table(rows))
    met = all(row["met"] for row in rows)
    path = record.write(given.out or "numerics", rows, {"steps": given.steps, "met": met})
    print(f"written to {path}")
    gang.close()
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
