"""What ranks that share rows are worth: work that is even, from real packing, and CPU seconds.

    python bench/sharing.py [--steps N]

First, without training: samples of lengths lognormal(5.2, 1) up to 4,096 tokens are packed and
divided as a run does, and a step's efficiency is the mean rank's cost over the dearest's, in FLOP
of Mistral-7B, communication not counted; with one rank a row, with the fewest that reach 0.9 (what
a step bound by compute wants), and over the replicas that the planner chooses on A100s, whose
tensor ranks and stages divide a row evenly (a pipeline's bubbles are not counted here); and the
seconds that are predicted of a step with each of the three, communication and bubbles counted. Then
one sample of 2,048 tokens a step on 1, 2 and 4 ranks here, which share it: the busiest rank's CPU
seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
import os
import subprocess
import tempfile
import time
from dataclasses import replace
from functools import partial
from statistics import mean, median
from typing import Any

import numpy as np

from bench import record
from train.data.divide import divide
from train.data.pack import pack
from train.planning import Pins, PlanRequest, choose, cluster_of, find_gpu, find_shape
from train.planning.predict import sample_cost

BATCHES, GPUS, BLOCK, DRAWS = (1, 5, 16, 32, 256), (8, 64), 4096, 20
SHAPE = find_shape("mistral-7b")


def main() -> int:
    parser = argparse.ArgumentParser(description="what ranks that share rows are worth")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given.steps, json.loads(given.worker))
        return 0
    show(given.steps)
    return 0


def show(steps: int) -> None:
    """Print and keep both tables."""
    rows = simulated()
    print(record.table(rows))
    seconds = [{"ranks": n, "cpu_seconds": measured(steps, n)} for n in (1, 2, 4)]
    for row in seconds:
        row["share"] = row["cpu_seconds"] / seconds[0]["cpu_seconds"]
    print(record.table(seconds))
    print(f"written to {record.write('sharing', rows, {'one sample of 2048 tokens': seconds})}")


def simulated() -> list[dict[str, Any]]:
    """Return a row for every batch and number of GPUs."""
    drawn = np.exp(np.random.default_rng(0).normal(5.2, 1.0, 20000)).astype(int)
    lengths = np.clip(drawn, 8, BLOCK)
    rows = []
    for gpus in GPUS:
        cluster = cluster_of([(f"n{n}", 8) for n in range(gpus // 8)], {}, find_gpu("A100-SXM"))
        for batch in BATCHES:
            request = PlanRequest(SHAPE, cluster, batch, BLOCK, lengths=lengths.tolist())
            planned = choose(request).chosen
            assert planned is not None
            by = {sp: efficiency(lengths, batch, gpus, sp) for sp in (1, 2, 4, 8, 16, 32, 64)
                  if gpus % sp == 0}  # fmt: skip
            fewest = next((sp for sp, found in by.items() if found >= 0.9), max(by, key=by.get))  # type: ignore[arg-type]
            plan = planned.plan
            degrees = {"dp": plan.dp, "sp": plan.sp, "tp": plan.tp, "pp": plan.pp}
            rows.append({
                "gpus": gpus, "batch": batch, "alone": by[1], "fewest": fewest,
                "shared": by[fewest],
                "planned": " ".join(f"{name}{n}" for name, n in degrees.items() if n > 1),
                "with": efficiency(lengths, batch, plan.ranks, plan.sp),
                "s_alone": predicted(request, 1), "s_shared": predicted(request, fewest),
                "s_planned": planned.time.total,
            })  # fmt: skip
    return rows


def predicted(request: PlanRequest, sp: int) -> float:
    """Return the seconds of a step that are predicted where so many ranks share a row."""
    chosen = choose(replace(request, pins=Pins(sp=sp, tp=1, pp=1))).chosen
    assert chosen is not None
    return chosen.time.total


def efficiency(lengths: Any, batch: int, gpus: int, sp: int) -> float:
    """Return the mean rank's cost over the dearest's, over some steps."""
    draw = np.random.default_rng(1)
    cost = np.vectorize(partial(sample_cost, SHAPE), otypes=[np.float64])
    found = []
    for _ in range(DRAWS):
        sizes = draw.choice(lengths, batch)
        packed = pack(sizes, 10**9, gpus // sp, cost)
        ranks = [
            sum(SHAPE.matmul_flops() * (s.last - s.first) + pairs(s) for s in stretches)
            for (positions,) in packed
            for stretches in (divide(sizes[list(positions)], sp) if positions else [()] * sp)
        ]
        found.append(mean(ranks) / max(ranks))
    return mean(found)


def pairs(stretch: Any) -> float:
    """Return the FLOP of a stretch's attention, forward."""
    count = (stretch.first + stretch.last + 1 - 2 * stretch.start) / 2
    return 4.0 * SHAPE.query_width * SHAPE.layers * count * (stretch.last - stretch.first)


def measured(steps: int, ranks: int) -> float:
    """Return the CPU seconds of a step on the busiest of `ranks` ranks that share its sample."""
    from bench.peers import SHAPES, free_port
    from bench.rig import preset_data, random_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_model(folder / "model", "fp32", **SHAPES["small"])
        text = preset_data().read_text().replace("\n", " ")
        samples = [json.dumps({"text": text[n * 10**4 :][:30000]}) for n in range(24)]
        (folder / "long.jsonl").write_text("\n".join(samples))
        task = {"folder": name, "ranks": str(ranks), "out": str(folder / "out.json")}
        words = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(ranks)]
        words += ["--master_port", str(free_port()), __file__, "--steps", str(steps)]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*words, "--worker", json.dumps(task)], env=env, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
        return float(json.loads(Path(task["out"]).read_text()))


def work(steps: int, task: dict[str, str]) -> None:
    """Train on the ranks that the launcher started; rank 0 writes the busiest one's seconds."""
    from bench.rig import join, rig
    from train.data.feed import step_batch

    gang = join()
    folder = Path(task["folder"])
    words = (
        f"--model-name-or-path {folder / 'model'} --dataset-name-or-path {folder / 'long.jsonl'} "
    )
    words += f"--batch-size 1 --block-size 2048 --max-steps {steps} --precision fp32 --lr 1e-5 "
    words += f"--ds-config ds_configs/auto.json --pin zero=1 recompute=none sp={task['ranks']}"
    run = rig(gang, words.split())
    engine = run.engine()
    job = run.job(engine)
    spent = []
    for step in range(steps):
        share = step_batch(job.train, 0, 1, step, job.placement)
        gang.barrier()
        began = time.process_time()
        engine.step(step, share.micros, share.loss_tokens, 1e-5)
        spent.append(time.process_time() - began)
    busiest = max(gang.gather(median(spent[1:])))
    if gang.world.is_main:
        Path(task["out"]).write_text(json.dumps(busiest))
    gang.close()


if __name__ == "__main__":
    sys.exit(main())
