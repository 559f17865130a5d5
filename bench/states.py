"""State memory: the planner's prediction against live tensors of real ZeRO runs on gloo.

    python -m bench.states

Every case starts `deepspeed --num_gpus N` with a small Mistral, takes a step of two micro-batches,
runs the next two and counts every live storage once, before the update, on rank 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.record import table, write
from train.planning.plan import Plan
from train.planning.shape import Shape
from train.planning.states import states_of

CASES = [
    (zero, precision, ranks)
    for ranks in (1, 2, 4)
    for zero, precision in ((0, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16"), (3, "fp32"))
]
SHAPE = Shape("mistral", 6, 512, 8, 4, 64, 1536, 4096)
PORT = 29610


def measured(zero: int, precision: str, ranks: int, number: int) -> dict[str, float]:
    """Return rank 0's live bytes by category."""
    with tempfile.TemporaryDirectory() as folder:
        words = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(ranks)]
        words += ["--master_port", str(PORT + number), "--module", "bench.states_rank"]
        words += [str(zero), precision, folder]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        found: dict[str, float] = json.loads(Path(folder, "rank0.json").read_text())
        return found


def main() -> int:
    """Run every case, print the table, write the results."""
    rows = []
    for number, (zero, precision, ranks) in enumerate(CASES):
        found = measured(zero, precision, ranks, number)
        states = states_of(SHAPE, Plan(zero, 256, dp=ranks), 2 if precision == "bf16" else 4, 0)
        predicted = {
            "weights": states.weights,
            "gradients": states.gradients + states.late,
            "optimizer": states.optimizer,
        }
        row: dict[str, object] = {"zero": zero, "precision": precision, "ranks": ranks}
        for name, value in predicted.items():
            row[name] = found[name] / 2**20
            row[f"{name}_predicted"] = value / 2**20
        total, said = sum(found[name] for name in predicted), sum(predicted.values())
        row["buffers"] = found["buffers"] / 2**20
        row["error_percent"] = 100 * (said / total - 1)
        print(table([row]).splitlines()[-1], flush=True)
        rows.append(row)
    errors = [abs(float(str(row["error_percent"]))) for row in rows]
    summary = {"mean_error_percent": sum(errors) / len(errors), "worst_error_percent": max(errors)}
    print(table(rows))
    print(summary)
    write("states", rows, summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
