"""Trains each named variant on the ranks that were started, and writes its steps.

deepspeed --num_gpus N tests/engine/invariance_worker.py MODEL DATA OUT VARIANT…
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from train.config import World, parse_args
from train.data.feed import Placement
from train.engine import start as engines
from train.engine.gang import Gang, connect
from train.engine.step import Engine
from train.launch.stopping import StopRequests
from train.loop import NoSaver, Outputs, TrainingJob, fit
from train.output.console import Console
from train.output.trackers import NoTracker
from train.planning import balance
from train.planning.balance import Pace
from train.planning.shares import Share
from train.run import inputs, preference, session
from train.run.planning import choose_plan
from train.run.resume import Resumed

BASE = "--batch-size 31 --block-size 128 --max-steps 20 --lr 3e-3 --precision fp32 --seed 7 "
BASE += "--lr-schedule linear --warmup-steps 3 --weight-decay 0.1 --ds-config ds_configs/auto.json "
UNASKED = StopRequests(World(), sys.exit)
PINS = "--pin micro_tokens=600 offload=none "
# Ten million elements: what sums of squares lose to rounding shows in the norm, and so in clipping.
LARGE = "--model-name-or-path {beside}/large --batch-size 7 --block-size 48 --loss-on all "
LARGE += "--max-grad-norm 0.5 --lr 1e-3"
SHORT = "--max-steps 8"  # of those that are about one thing more than the ranks and the stage
# Four layers and a tied embedding, which the first and the last stage have both.
DEEPER = "--model-name-or-path {beside}/deeper --max-steps 8"
VARIANTS = {
    **{f"zero{z}": f"recompute=none zero={z}" for z in range(4)},
    "short": f"recompute=none zero=0 {SHORT}",
    "even": f"recompute=none zero=3 --batch-size 24 {SHORT}",
    "few": f"recompute=none zero=3 --batch-size 5 {SHORT}",
    "recompute": f"recompute=full zero=3 {SHORT}",
    "selective": f"recompute=selective zero=2 {SHORT}",
    "padded": f"recompute=none zero=2 {SHORT}",
    # DeepSpeed makes the groups of such copies once in a process: one variant for each start.
    "shared2-hpz": f"recompute=full zero=3 sp=2 hpz=2 --batch-size 5 {SHORT}",
    "seed": f"recompute=none zero=0 --seed 8 {SHORT}",
    **{
        f"lora{z}": f"recompute=none zero={z} --use-lora --lora-dropout 0.2 --lr 5e-3 {SHORT}"
        for z in range(4)
    },
    **{
        f"qlora{z}": f"recompute=none zero={z} --use-lora --lora-dropout 0.2 --lr 5e-3 "
        f"--quantize nf4 {SHORT}"
        for z in range(3)
    },
    **{
        f"dpo{z}{'-lora' * k}": f"recompute=none zero={z} --objective dpo --lr 5e-4 {SHORT} "
        f"--dataset-name-or-path {{beside}}/pairs.jsonl {'--use-lora --lr 2e-3' * k}"
        for z in range(4)
        for k in range(2)
    },
    **{f"bf16-zero{z}": f"recompute=none zero={z} --precision bf16 {SHORT}" for z in (1, 2, 3)},
    **{
        f"batch{b}-sp{k}-zero{z}": f"recompute=none zero={z} sp={k} --batch-size {b}"
        for b in (1, 2, 13, 31)
        for k in range(1, 5)
        for z in range(4)
    },
    **{
        f"batch{b}-{sizes}-zero{z}": f"recompute=none zero={z} replicas={sizes} --batch-size {b}"
        for b in (2, 13, 31)
        for sizes in ("2+1", "3+1", "3+2", "1+2+1")
        for z in range(4)
    },
    # The last rank computes at half the speed, which is measured after 12 steps.
    "batch13-paces-zero3": "recompute=none zero=3 --batch-size 13",
    **{
        f"stages{b}-pp{pp}-{kind}": f"recompute={again} pp={pp} {words} --batch-size {b} {DEEPER}"
        for b in (1, 3, 13)
        for pp in (1, 2, 3, 4)
        for kind, again, words in (
            ("zero0", "none", "zero=0"),
            ("zero1", "selective", "zero=1"),
            ("sp2", "full", "zero=1 sp=2"),
        )
    },
    "lora1-pp2": f"recompute=full zero=1 pp=2 --use-lora --lora-dropout 0.2 --lr 5e-3 {SHORT}",
    "bf16-pp2": f"recompute=none zero=1 pp=2 --precision bf16 {SHORT}",
    "large-pp2": f"recompute=none zero=1 pp=2 {LARGE}",
    # Ranks that are taken to be 1, 2, 3 … times as fast as the first.
    "batch13-speeds-zero1": "recompute=none zero=1 --batch-size 13",
    **{
        f"shared{k}-{name}": f"{words.replace('zero', f'sp={k} zero')} --batch-size 5 {SHORT}"
        for k in range(1, 5)
        for name, words in {
            "full": "recompute=full zero=3",
            "selective": "recompute=selective zero=2",
            "lora": "recompute=full zero=3 --use-lora --lora-dropout 0.2 --lr 5e-3",
            "bf16": "recompute=none zero=2 --precision bf16",
        }.items()
    },
    **{f"large{z}": f"recompute=none zero={z} {LARGE}" for z in range(4)},
}
# Not every processor has fp16. The huge ones begin with a loss scale at which gradients overflow.
FP16 = {
    name: f"recompute=none {words} --max-steps 6"
    for name, words in {
        "fp16-usual-zero1": "zero=1 --precision fp16",
        "fp16-usual-zero3": "zero=3 --precision fp16",
        **{f"fp16-huge-zero{z}": f"zero={z} --precision fp16" for z in (1, 2, 3)},
        **{f"fp16-huge-zero{z}-offload": f"zero={z} --precision fp16" for z in (2, 3)},
        "short-bf16": "zero=3 --precision bf16",
        "short-fp32": "zero=0",
    }.items()
}
HUGE = 2.0**27


def steps(gang: Gang, variant: str, model: str, data: str, out: Path) -> list[dict[str, object]]:
    words = ["--model-name-or-path", model, "--dataset-name-or-path", data]
    own = (VARIANTS | FP16)[variant].format(beside=Path(model).parent).split()
    pins = PINS.replace("none", "optimizer") if variant.endswith("-offload") else PINS
    config = parse_args([*words, *BASE.split(), *pins.split(), *own])
    quiet = Console(False)
    source = inputs.locate(config, out, quiet)
    source, samples = inputs.open_data(source, out / "cache", quiet)
    planned = choose_plan(source, samples, gang, quiet)
    if "speeds" in variant:
        shares = tuple(Share(600 + 50 * rank, rank + 1.0) for rank in range(gang.world.size))
        planned = dataclasses.replace(planned, shares=shares)
    engine = engines.start(
        gang,
        config,
        source.model,
        planned.chosen.plan,
        dict(planned.zero),
        packed=variant != "padded",
    )
    if "-huge-" in variant:
        engine.scale.value = HUGE
    samples = preference.refer(engine, source, samples, planned, out / "cache", quiet)
    job = session.training_job(source, samples, planned, engine, Resumed(NoSaver(), 0, False))
    if "paces" in variant:
        job = slowed(engine, job, out / f"moved{gang.world.rank}.json")
    records = fit(engine, job, Outputs(quiet, None, NoTracker(), out), NoSaver(), UNASKED)
    engine.deepspeed.destroy()
    return [dataclasses.asdict(record) for record in records]


def slowed(engine: Engine, job: TrainingJob, out: Path) -> TrainingJob:
    """Make each product of this rank last, twice as long on the last; note whose work is moved."""
    world = engine.gang.world
    balance.EVERY = 12  # of 20 steps
    each = 5e-5 * (1 + (world.rank == world.size - 1))

    def lasting(forward: Callable[..., torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        time.sleep(each * tokens.shape[-2])
        return forward(tokens)

    for module in engine.model.module.modules():
        if isinstance(module, torch.nn.Linear):
            module.forward = partial(lasting, module.forward)

    def noted(placement: Placement, paces: Sequence[Pace]) -> tuple[Placement, str]:
        found, said = job.balanced(placement, paces)
        out.write_text(json.dumps([[load.speed for load in found.loads], said]))
        return found, said

    return dataclasses.replace(job, balanced=noted)


def train(gang: Gang, variants: Sequence[str], model: str, data: str, out: Path) -> None:
    """Train each variant; rank 0 writes the steps of all to out/ranks<N>.json."""
    found = {name: steps(gang, name, model, data, out) for name in variants}
    if gang.world.is_main:
        (out / f"ranks{gang.world.size}.json").write_text(json.dumps(found))


def main() -> None:
    local = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    model, data, out, *variants = local
    gang = connect(World.from_env(os.environ), os.environ)
    train(gang, variants, model, data, Path(out))
    gang.close()


if __name__ == "__main__":
    main()
