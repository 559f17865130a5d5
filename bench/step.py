"""Steps under a grid of plans: speed, MFU and peak memory, predicted beside measured.

    python bench/step.py [--steps N] [--shape small|mistral-7b] [--layers N] [--lora] …

Every plan runs in its own process on one device, on the embedded data, or with `--full` on samples
that fill the block. The plan that the planner would choose among them is marked, and what it costs
against the best measured is printed. MFU is known on GPUs only: a CPU's peak is not.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
import subprocess
import tempfile
from collections.abc import Sequence
from itertools import product
from statistics import median
from typing import Any

from bench import record
from bench.peers import SHAPES, fill


def parser() -> argparse.ArgumentParser:
    """Return the parser of this bench."""
    parser = argparse.ArgumentParser(description="predicted beside measured, over plans")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="small")
    parser.add_argument("--layers", type=int, help="cut the shape to this many layers")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--block", type=int, default=512)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--full", action="store_true", help="every sample fills the block")
    parser.add_argument("--zero", nargs="+", default=("1", "3"))
    parser.add_argument("--recompute", nargs="+", default=("none", "selective", "full"))
    parser.add_argument("--offload", nargs="+", default=("none",))
    parser.add_argument("--samples", nargs="+", type=int, default=(2, 8), help="at a time, full")
    parser.add_argument("--plain", action="store_true", help="without Liger's kernels")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser


def main() -> int:
    """Train under every plan, print and write what came out."""
    given = parser().parse_args()
    if given.one:
        run_one(given, json.loads(given.one))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        rows = grid(given, Path(folder), sys.argv[1:])
    print(record.table(rows))
    summary = judge(rows)
    print(*(f"{name}: {value}" for name, value in summary.items()), sep="\n")
    name = f"step-{given.shape}{'-lora' if given.lora else ''}{'-full' if given.full else ''}"
    print(f"written to {record.write(name, rows, summary | {'arguments': vars(given)})}")
    return 0


def grid(given: argparse.Namespace, folder: Path, words: Sequence[str]) -> list[dict[str, Any]]:
    """Run every plan in a process of its own; a plan that fails is a row that says how.

    Args:
        words: those that `given` was parsed from.
    """
    from bench.rig import preset_data, random_model

    layers = {"num_hidden_layers": given.layers} if given.layers else {}
    random_model(folder / "model", given.precision, **SHAPES[given.shape] | layers)
    data = folder / "data.jsonl"
    data.write_text(fill(given.block) if given.full else preset_data().read_text())
    rows = []
    plans = product(given.zero, given.recompute, given.offload, given.samples)
    for zero, recompute, offload, samples in plans:
        pins = {"zero": zero, "recompute": recompute, "offload": offload,
                "micro_tokens": samples * given.block}  # fmt: skip
        task = {"folder": str(folder), "data": str(data), "pins": pins}
        argv = [sys.executable, __file__, *words, "--one", json.dumps(task)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        found = folder / "result.json"
        if done.returncode:
            print(f"{pins} failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
            continue
        rows.append(pins | json.loads(found.read_text()))
        found.unlink()
    return rows


def run_one(given: argparse.Namespace, task: dict[str, Any]) -> None:
    """Train under one plan; write what was predicted and measured."""
    from bench.rig import QUIET, join, rig, train
    from train.loop import Outputs
    from train.output.trackers import NoTracker

    folder = Path(task["folder"])
    words = [
        "--model-name-or-path", str(folder / "model"), "--dataset-name-or-path", task["data"],
        "--batch-size", str(given.batch), "--block-size", str(given.block), "--lr", "1e-5",
        "--max-steps", str(given.steps), "--precision", given.precision,
        "--ds-config", "ds_configs/auto.json", *(["--use-lora"] if given.lora else []),
        "--pin", *(f"{key}={value}" for key, value in task["pins"].items()),
    ]  # fmt: skip
    run = rig(join(), words)
    engine = run.engine(fused=not given.plain)
    records = train(engine, run.job(engine), Outputs(QUIET, None, NoTracker(), folder))
    settled, chosen = records[1:], run.planned.chosen
    seconds = median(r.seconds for r in settled)
    result = {
        "tokens_per_s": median(r.tokens_per_s for r in settled),
        "mfu": settled[0].mfu and median(r.mfu or 0.0 for r in settled),
        "seconds": seconds, "predicted_seconds": chosen.time.total,
        "seconds_error": chosen.time.total / seconds - 1,
        "peak_gib": records[-1].peak_bytes / 2**30,
        "reserved_gib": engine.reserved_bytes() / 2**30,
        "predicted_gib": chosen.memory.total / 2**30,
        # A process that had more memory before, on a CPU, grows by nothing.
        "gib_error": chosen.memory.total / peak - 1 if (peak := records[-1].peak_bytes) else 0.0,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))


def judge(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Say how far the plan predicted fastest is from the one measured fastest."""
    chosen = min(rows, key=lambda row: row["predicted_seconds"])
    fastest = min(rows, key=lambda row: row["seconds"])
    pairs = [(a, b) for a in rows for b in rows if a["seconds"] < b["seconds"]]
    agreed = sum(a["predicted_seconds"] < b["predicted_seconds"] for a, b in pairs)
    return {
        "chosen_over_best_seconds": chosen["seconds"] / fastest["seconds"],
        "pairs_in_order": agreed / max(1, len(pairs)),
        "worst_memory_error": max(abs(row["gib_error"]) for row in rows),
        "worst_time_error": max(abs(row["seconds_error"]) for row in rows),
    }


if __name__ == "__main__":
    sys.exit(main())
