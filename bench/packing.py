"""What packing saves: a packed step's time against the padded step's, on the embedded data.

    python bench/packing.py [--steps N]

Three ways to take the same optimizer steps (same samples, same model, one process), interleaved:

- packed: what a run does, samples laid end to end;
- padded to the longest: micro-batches of equally many samples in the order drawn, each padded to
  its own longest sample, as a padding collator does;
- padded to the block: the same micro-batches, every sample padded to the block size.

The padded ways use transformers' default attention (sdpa with a mask) and compute the logits of
every position, as its trainer does. The budget: share of real tokens + 15 points.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean, median

from bench import record
from bench.rig import Rig, interleaved, join, median_ratio, rig
from train.data.batch import MicroBatch, collate
from train.data.feed import StepBatch, step_batch
from train.data.order import sample_ids
from train.engine.inputs import padded_inputs
from train.engine.step import Engine
from train.loop import TrainingJob

BLOCK, MARGIN = 1024, 0.15
WORDS = f"--batch-size 16 --block-size {BLOCK} --lr 1e-5 "
WORDS += f"--pin micro_tokens={4 * BLOCK} recompute=none zero=0 offload=none"


@dataclass(frozen=True)
class Way:
    """One way to take a step: an engine, and how it cuts the step's samples."""

    engine: Engine
    shares: Sequence[StepBatch]

    def step(self, number: int) -> None:
        """Take optimizer step `number`."""
        share = self.shares[number % len(self.shares)]
        self.engine.step(number, share.micros, share.loss_tokens, 1e-5)


def packed_share(job: TrainingJob, step: int) -> StepBatch:
    data = job.config.data
    return step_batch(job.train, data.seed, data.batch_size, step, job.placement)


def in_rows(job: TrainingJob, step: int, rows: int) -> StepBatch:
    """The same samples in the order drawn, `rows` to a micro-batch."""
    data, train = job.config.data, job.train
    ids = sample_ids(data.seed, train.fingerprint, len(train.lengths), data.batch_size, step)
    parts = [ids[first : first + rows] for first in range(0, len(ids), rows)]
    return replace(packed_share(job, step), micros=tuple(collate(train, part) for part in parts))


def ways(run: Rig, steps: int) -> dict[str, Way]:
    packed, padded = run.engine(), run.engine(packed=False)
    block = replace(padded, inputs=partial(padded_inputs, width=BLOCK))
    job = run.job(packed)
    rows = job.placement.capacity // BLOCK
    padded_shares = [in_rows(job, step, rows) for step in range(steps)]
    return {
        "packed": Way(packed, [packed_share(job, step) for step in range(steps)]),
        "padded to the longest": Way(padded, padded_shares),
        "padded to the block": Way(block, padded_shares),
    }


def seen(way: str, micro: MicroBatch) -> int:
    """Tokens that the model sees."""
    width = {"padded to the longest": max(micro.lengths), "padded to the block": BLOCK}.get(way)
    return sum(micro.lengths) if width is None else width * len(micro.lengths)


def main() -> int:
    parser = argparse.ArgumentParser(description="packed against padded steps")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps timed each way")
    steps = parser.parse_args().steps
    gang = join()
    found = ways(rig(gang, WORDS.split()), steps + 1)
    seconds = interleaved({name: way.step for name, way in found.items()}, steps)
    rows = []
    for name, way in found.items():
        shares = way.shares[1:]
        tokens = mean(sum(seen(name, micro) for micro in share.micros) for share in shares)
        share = mean(share.tokens for share in shares) / tokens
        ratio = median_ratio(seconds["packed"], seconds[name])
        rows.append({
            "way": name, "tokens": tokens, "seconds": median(seconds[name]),
            "real_share": share, "packed_over_this": ratio,
            "allowed": share + MARGIN, "met": ratio <= share + MARGIN or name == "packed",
        })  # fmt: skip
    print(f"{steps} steps of {found['packed'].shares[0].samples} samples, block {BLOCK}")
    print(record.table(rows))
    print(f"written to {record.write('packing', rows, {'met': all(row['met'] for row in rows)})}")
    gang.close()
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
