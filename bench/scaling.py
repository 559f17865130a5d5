"""From one rank to two here, and from 8 GPUs to 512 by the planner, with published points over it.

    python bench/scaling.py [--rounds R] [--steps N]

Here: the same steps (same batch, so each rank has half the work at two ranks) by DeepSpeed's
launcher with one thread a rank, in turns; the best median of each. Two lone ranks at once, which
exchange nothing, show what the machine itself allows. There: InternLM-7B on A100s with
the batch growing with the GPUs, as InternEvo published it, and Mistral-7B with one batch for all.
Last, what ranks that share rows are worth, with and without: the tables of `bench/sharing.py`.
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
from statistics import median
from typing import Any

from bench import record, sharing
from train.planning import (
    Implementation,
    Pins,
    PlanRequest,
    choose,
    cluster_of,
    find_gpu,
    find_shape,
)

BATCH = 32
COUNTS = (8, 16, 32, 64, 128, 256, 512)
# InternLM/InternEvo, doc/en/train_performance.md: tokens/s and GPU, 2,048 tokens a sequence, A100
# 80 GB, 4 x 100 Gb RoCE a host: ZeRO-1 over all ranks, and inside each host.
PUBLISHED = {
    "over all ranks": {16: 3842.0, 64: 3690.0, 128: 3571.0, 256: 3209.0},
    "inside hosts": {8: 4078.0, 16: 3939.0, 512: 3835.0},
}
INTERNLM = "layers=32,hidden=4096,heads=32,kv_heads=32,ffn=11008,vocab=103168"
THEIRS = Pins(zero=1, micro_tokens=4096, recompute="none")


def main() -> int:
    parser = argparse.ArgumentParser(description="scaling here, and predicted to 512 GPUs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--ranks", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given.steps, json.loads(given.worker))
        return 0
    rows = measured(given)
    print(record.table(rows))
    weak, strong = predicted_weak(), predicted_strong()
    print(record.table(weak), record.table(strong), sep="\n\n")
    speed_up, machine = rows[len(given.ranks) - 1]["speed_up"], rows[-1]["speed_up"]
    print(
        f"{given.ranks[-1]} ranks: {speed_up:.2f}x, {speed_up / machine:.0%} of the machine's own"
    )
    summary = {"speed_up": speed_up, "machine": machine, "published": PUBLISHED, "weak": weak}
    print(f"written to {record.write('scaling', rows, summary | {'strong': strong})}")
    print(f"drawn to {draw(weak, strong)}")
    sharing.show(given.steps)
    return 0


def measured(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Run every rank count in turns, and two lone ranks at once; return a row for each."""
    from bench.peers import SHAPES
    from bench.rig import random_model

    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_model(folder / "model", "fp32", **SHAPES["small"])
        for _ in range(given.rounds):
            for ranks in given.ranks:
                one = Start(folder, given.steps, ranks, BATCH)
                found.setdefault(f"{ranks}", []).append(one.seconds())
            alone = Start(folder, given.steps, 1, BATCH // 2).seconds()
            both = [Start(folder, given.steps, 1, BATCH // 2) for _ in range(2)]
            found.setdefault("1, half the batch", []).append(alone)
            found.setdefault("two of these at once", []).append(max(s.seconds() for s in both))
    first = min(found[f"{given.ranks[0]}"])
    half = min(found["1, half the batch"])
    rows = [
        {"ranks": ranks, "seconds": min(seconds), "speed_up": first / min(seconds)}
        for ranks, seconds in found.items()
    ]
    rows[-2]["speed_up"] = 1.0
    rows[-1]["speed_up"] = 2 * half / rows[-1]["seconds"]
    return rows


class Start:
    """A training under DeepSpeed's launcher, of `batch` samples a step."""

    def __init__(self, folder: Path, steps: int, ranks: int, batch: int) -> None:
        from bench.peers import free_port
        from bench.rig import preset_data

        port = free_port()
        self.out = folder / f"seconds-{port}.json"
        task = {"model": str(folder / "model"), "data": str(preset_data()), "batch": str(batch),
                "out": str(self.out)}  # fmt: skip
        runner = Path(sys.executable).with_name("deepspeed")
        words = [str(runner), "--num_gpus", str(ranks), "--master_port", str(port)]
        words += [__file__, "--steps", str(steps), "--worker", json.dumps(task)]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def seconds(self) -> float:
        """Wait for the end; return the median step's seconds."""
        said, _ = self.process.communicate()
        if self.process.returncode:
            raise SystemExit(said[-4000:])
        return median(json.loads(self.out.read_text()))


def work(steps: int, task: dict[str, str]) -> None:
    """Train on the ranks that the launcher started; rank 0 writes the seconds of each step."""
    from bench.rig import QUIET, join, rig, train
    from train.loop import Outputs
    from train.output.trackers import NoTracker

    gang = join()
    words = f"--model-name-or-path {task['model']} --dataset-name-or-path {task['data']} "
    words += f"--batch-size {task['batch']} --block-size 512 --max-steps {steps} "
    words += "--precision fp32 --lr 1e-5 --ds-config ds_configs/auto.json "
    words += "--pin zero=1 recompute=none offload=none micro_tokens=4096"
    run = rig(gang, words.split())
    engine = run.engine()
    records = train(engine, run.job(engine), Outputs(QUIET, None, NoTracker(), Path(task["out"])))
    if gang.world.is_main:
        Path(task["out"]).write_text(json.dumps([r.seconds for r in records[1:]]))
    gang.close()


def predicted_weak() -> list[dict[str, Any]]:
    """InternLM-7B, eight sequences a GPU and step, beside what was published."""
    rows = []
    for gpus in COUNTS:
        chosen = best(INTERNLM, gpus, 8 * gpus, 2048, "4x100Gb", "A100-SXM-80GB", THEIRS,
                      Implementation())  # fmt: skip
        row: dict[str, Any] = {"gpus": gpus, "tokens_per_s_per_gpu": chosen}
        rows.append(row | {name: points.get(gpus, "") for name, points in PUBLISHED.items()})
    return rows


def predicted_strong() -> list[dict[str, Any]]:
    """Mistral-7B with one batch of 1,024 samples at every GPU count: what this project means."""
    rows: list[dict[str, Any]] = []
    for gpus in COUNTS:
        speed = best("mistral-7b", gpus, 1024, 2048, "8x400Gb", "H100-SXM", Pins())
        whole = speed * gpus
        base = rows[0]["tokens_per_s"] / rows[0]["gpus"] if rows else speed
        rows.append({"gpus": gpus, "tokens_per_s": whole, "efficiency": speed / base,
                     "seconds_per_step": 1024 * 2048 / whole})  # fmt: skip
    return rows


def best(
    shape: str,
    gpus: int,
    batch: int,
    block: int,
    nic: str,
    gpu: str,
    pins: Pins,
    other: Implementation | None = None,
) -> float:
    """Return the chosen plan's tokens per second and GPU on hosts of eight."""
    hosts = [(f"node{number}", 8) for number in range(1, gpus // 8 + 1)]
    cluster = cluster_of(hosts, {"nic": nic}, find_gpu(gpu))
    request = PlanRequest(find_shape(shape), cluster, batch, block, pins=pins,
                          implementation=other)  # fmt: skip
    chosen = choose(request).chosen
    assert chosen is not None, f"nothing fits {gpus} x {gpu}"
    return chosen.tokens_per_s / gpus


def draw(weak: list[dict[str, Any]], strong: list[dict[str, Any]]) -> Path:
    """Draw both curves and the published points."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    left.plot(COUNTS, [row["tokens_per_s_per_gpu"] for row in weak], "-", color="#1b6ca8",
              label="predicted, over all ranks")  # fmt: skip
    for (name, points), mark in zip(PUBLISHED.items(), "os", strict=True):
        left.plot(list(points), list(points.values()), mark, label=f"published, {name}")
    left.set(title="InternLM-7B, A100, batch grows with the GPUs", ylabel="tokens/s and GPU")
    left.set_ylim(bottom=0)
    right.plot(COUNTS, [100 * row["efficiency"] for row in strong], ".-", color="#1b6ca8")
    right.set(title="Mistral-7B, H100, 1,024 samples a step", ylabel="efficiency (%)")
    right.set_ylim(0, 105)
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set_xticks(COUNTS, [str(count) for count in COUNTS])
        axis.set_xlabel("GPUs")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    path = record.RESULTS / "scaling.png"
    figure.savefig(path, dpi=130)
    return path


if __name__ == "__main__":
    sys.exit(main())
