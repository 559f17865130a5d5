"""Fit the planner's `Rates` to published throughput.

    python -m bench.fit FILE.csv [--seconds S] [--half | --each]

Coordinate descent on the mean absolute log error; every project weighs as the root of its rows, so
that a large sweep does not outvote the rest. A constant also pays for its distance from `EXPECTED`,
so that one which the rows hardly decide stays where the literature has it. Only A100 rows take
part, whose peak rates are known best.

With `--half`, half of the sources are fitted and the errors of the others are printed: what the
model is worth on sources that it has not seen. With `--each`, every project's rows in turn are
left out of the fit and judged; the files of one project count as one source.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import exp, log
from pathlib import Path
from statistics import median
from time import monotonic

from bench.published import percentile
from bench.rows import Row, read
from train.planning.duration import Rates, duration

BOUNDS = {
    "sustained": (0.6, 1.0), "tile_tokens": (16.0, 800.0), "tile_width": (8.0, 800.0),
    "vocabulary": (6.0, 60.0), "nvlink_efficiency": (0.4, 1.0), "attention": (0.25, 0.9),
    "attention_back": (0.2, 0.9), "traffic": (1.5, 25.0), "eager": (10.0, 300.0),
    "scores": (1.0, 30.0), "overlap": (0.2, 0.95), "nic_efficiency": (0.25, 0.9),
    "sync_cost": (1e-5, 2e-3), "update_bytes_per_param": (24.0, 120.0),
    "unaligned_penalty": (0.02, 0.5),
}  # fmt: skip
# What each would be without these rows: half a tile of 128 (tile_*), bytes counted operation
# by operation (vocabulary, traffic, eager, scores, step), FlashAttention-2's
# published rates on an A100 (attention), NCCL's on NVLink and InfiniBand.
EXPECTED = {
    "sustained": 0.9, "tile_tokens": 64.0, "tile_width": 64.0, "vocabulary": 24.0,
    "nvlink_efficiency": 0.8,
    "attention": 0.66, "attention_back": 0.5, "traffic": 4.5, "eager": 48.0, "scores": 12.0,
    "overlap": 0.8, "nic_efficiency": 0.85, "sync_cost": 1e-4,
    "update_bytes_per_param": 32.0, "unaligned_penalty": 0.15,
}  # fmt: skip
PULL = 0.002  # of loss, for a constant that is off by a factor of e
FITTED_HALF = ("llm-foundry", "65B_bfloat16_128", "13B_bfloat16_64_GPUs", "Korth")


def errors(rows: Sequence[Row], rates: Rates) -> list[float]:
    """Return the logarithm of predicted over measured throughput of every row."""
    found = []
    for row in rows:
        seconds = duration(row.request, row.plan, row.lengths, rates).total
        tokens = row.request.batch_size * row.request.block_size
        found.append(log(tokens / seconds / row.plan.gpus / (row.tokens_per_s or 1.0)))
    return found


def loss(rows: Sequence[Row], rates: Rates) -> float:
    """Return the weighted mean absolute error, and what the constants' distances cost."""
    counts = Counter(project(row) for row in rows)
    weights = [counts[project(row)] ** -0.5 for row in rows]
    pairs = zip(weights, errors(rows, rates), strict=True)
    error = sum(weight * abs(error) for weight, error in pairs) / sum(weights)
    return error + PULL * sum(
        log(getattr(rates, name) / value) ** 2 for name, value in EXPECTED.items()
    )


def fit(rows: Sequence[Row], start: Rates, seconds: float) -> Rates:
    """Return better constants, by steps along one at a time that grow and shrink by success."""
    random.seed(1)
    steps = dict.fromkeys(BOUNDS, 0.3)
    best, lowest, end = start, loss(rows, start), monotonic() + seconds
    while monotonic() < end:
        name = random.choice(list(BOUNDS))
        low, high = BOUNDS[name]
        for sign in (1, -1):
            moved = getattr(best, name) * exp(sign * steps[name] * random.uniform(0.2, 1))
            tried = replace(best, **{name: min(high, max(low, moved))})
            value = loss(rows, tried)
            if value < lowest - 1e-6:
                best, lowest, steps[name] = tried, value, min(0.5, steps[name] * 1.3)
                break
        else:
            steps[name] = max(0.02, steps[name] * 0.8)
    return best


def main(argv: Sequence[str]) -> int:
    """Fit, print the constants and the errors they leave."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--each", action="store_true")
    given = parser.parse_args(argv)
    rows = [
        row
        for row in read(given.file)
        if row.tokens_per_s and row.decided and row.request.lora is None
        and row.request.cluster.gpu.name.startswith("A100")
    ]  # fmt: skip
    if given.each:
        return each(rows, given.seconds)
    known = [row for row in rows if any(word in row.source for word in FITTED_HALF)]
    judged = [row for row in rows if row not in known] if given.half else rows
    start = replace(Rates(), **EXPECTED) if given.half else Rates()
    rates = fit(known if given.half else rows, start, given.seconds)
    print(rates)
    print(judgement("judged", [exp(error) - 1 for error in errors(judged, rates)]))
    return 0


def each(rows: Sequence[Row], seconds: float) -> int:
    """Leave every project out in turn; print the errors of its rows, and of all rows so judged."""
    left: list[float] = []
    for name in sorted({project(row) for row in rows}):
        others = [row for row in rows if project(row) != name]
        rates = fit(others, replace(Rates(), **EXPECTED), seconds)
        judged = [row for row in rows if project(row) == name]
        found = [exp(error) - 1 for error in errors(judged, rates)]
        print(judgement(name, found), flush=True)
        left += found
    print(judgement("all", left))
    return 0


def project(row: Row) -> str:
    """Return the project that a row's source belongs to."""
    return row.source.split("@")[0].split(" ")[0]


def judgement(name: str, found: Sequence[float]) -> str:
    """Return bias, median and 90th percentile of relative errors in one line."""
    size = [abs(error) for error in found]
    return (
        f"{name}: {len(found)} rows, bias {100 * median(found):+.1f} %, median "
        f"{100 * median(size):.1f} %, 90th percentile {100 * percentile(size, 0.9):.1f} %"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
