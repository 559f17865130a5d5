"""Published measurements: the planner's predictions against them.

    python -m bench.published FILE.csv

Throughput is judged on rows whose visible columns decide it (shape, GPUs, layout, micro-batch,
recomputation, plain bf16 or fp16), memory on rows that print a peak, and layouts that ran out of
memory on whether they are called so. `noise` is the scatter among rows that share every visible
column: no predictor that reads only those columns can be closer. So for order inside a sweep
`ceiling` is the correlation of a predictor that knew the middle of all rows with a layout, and
`clear` counts only pairs that differ by more than two rows of one layout typically do.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import log
from pathlib import Path
from statistics import median
from typing import Any

from bench.record import table, write
from bench.rows import Row, read
from train.planning.predict import predict
from train.planning.request import Candidate

SHOWN = 62


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def errors_by(pairs: Sequence[tuple[Row, float]], name: str, label: Any) -> list[dict[str, Any]]:
    """Return bias, median and 90th percentile of the relative errors in every group."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row, error in pairs:
        groups[str(label(row))].append(error)
    return [
        {
            name: key[-SHOWN:], "rows": len(found), "bias_percent": 100 * median(found),
            "median_percent": 100 * median(map(abs, found)),
            "p90_percent": 100 * percentile(map(abs, found), 0.9),
        }
        for key, found in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]  # fmt: skip


def noise(rows: Sequence[Row]) -> list[float]:
    """Return how far each row lies from the middle of the rows that share its visible columns."""
    groups: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for row in rows:
        if row.tokens_per_s:
            groups[(row.source, *row.key)].append(row.tokens_per_s)
    return [
        abs(value / median(found) - 1)
        for found in groups.values()
        if len(found) > 1
        for value in found
    ]


def kendall(pairs: Sequence[tuple[float, float]], floor: float = 0.01) -> tuple[float, int]:
    """Return the rank correlation of (measured, predicted) pairs, and of how many pairs of them.

    Pairs measured within `floor` of one another, in logarithms, do not count, nor do pairs whose
    prediction is the same.
    """
    same = other = 0
    for (a, b), (c, d) in combinations(pairs, 2):
        if abs(log(a / c)) > floor and b != d:
            same, other = same + ((a > c) == (b > d)), other + ((a > c) != (b > d))
    return (same - other) / max(1, same + other), same + other


def orders(found: Sequence[tuple[Row, Candidate]]) -> list[dict[str, Any]]:
    """Return the rank correlation of predicted and measured speed within every sweep."""
    sweeps: dict[str, list[tuple[Row, Candidate]]] = defaultdict(list)
    for row, candidate in found:
        if row.tokens_per_s:
            sweeps[row.sweep].append((row, candidate))
    result = []
    for key, members in sweeps.items():
        pairs = [(row.tokens_per_s or 0.0, c.tokens_per_s / c.plan.gpus) for row, c in members]
        tau, count = kendall(pairs)
        if len(members) < 5 or not count:
            continue
        layouts: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        for row, _ in members:
            layouts[row.layout].append(row.tokens_per_s or 0.0)
        known = [(row.tokens_per_s or 0.0, median(layouts[row.layout])) for row, _ in members]
        apart = [abs(log(a / b)) for same in layouts.values() for a, b in combinations(same, 2)]
        floor = max(0.01, median(apart)) if apart else 0.01
        clear, clear_count = kendall(pairs, floor)
        ceiling, ceiling_count = kendall(known)
        result.append(
            {"sweep": key[-SHOWN:], "rows": len(members), "pairs": count, "tau": tau,
             "ceiling_pairs": ceiling_count, "ceiling": ceiling, "floor_percent": 100 * floor,
             "clear_pairs": clear_count, "clear": clear}
        )  # fmt: skip
    return sorted(result, key=lambda row: -int(row["rows"]))


def scaling(found: Sequence[tuple[Row, Candidate]]) -> list[dict[str, Any]]:
    """Return the efficiency of the largest count against the smallest, measured and predicted."""
    groups: dict[str, dict[int, tuple[float, float]]] = defaultdict(dict)
    for row, candidate in found:
        if row.tokens_per_s and row.decided and row.request.lora is None:
            speed = candidate.tokens_per_s / candidate.plan.gpus
            groups[row.series][candidate.plan.gpus] = (row.tokens_per_s, speed)
    result = []
    for key, counts in groups.items():
        least, most = min(counts), max(counts)
        if most >= 16 * least:
            measured, predicted = (counts[most][i] / counts[least][i] for i in (0, 1))
            result.append(
                {"series": key[-SHOWN:], "from": least, "to": most, "measured": measured,
                 "predicted": predicted, "points": 100 * (predicted - measured)}
            )  # fmt: skip
    return result


def memory_error(row: Row, candidate: Candidate) -> float:
    """Return a peak's relative error; torch's counters do not see what is held in reserve."""
    unseen = 0.0 if row.context else candidate.memory.reserve
    return (candidate.memory.total - unseen) / (row.peak or 1.0) - 1


def outcomes(found: Sequence[tuple[Row, Candidate]]) -> dict[str, float]:
    """Return how layouts that ran, and layouts that did not, were called."""
    ran = [(row, c) for row, c in found if not row.oom and row.tokens_per_s and row.stated]
    failed = [c for row, c in found if row.oom]
    over = [c.memory.total / row.request.cluster.gpu.memory for row, c in ran]
    return {
        "ran": len(ran),
        "ran_called_impossible_by_5_percent": sum(share > 1.05 for share in over),
        "out_of_memory": len(failed),
        "called_so_percent": 100 * sum(not c.fits for c in failed) / max(1, len(failed)),
    }


def speeds(rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """Return the relative error of every throughput that the columns decide."""
    return [
        (row, predict(row.request, row.plan, row.lengths).tokens_per_s / row.plan.gpus
         / row.tokens_per_s - 1)
        for row in rows
        if row.tokens_per_s and row.decided
    ]  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Predict every usable row; print errors, order and outcomes; write the results."""
    rows = read(Path(argv[0]))
    found = [(row, predict(row.request, row.plan, row.lengths)) for row in rows]
    speed, careful = speeds(rows), speeds(read(Path(argv[0]), cautioned=True))
    peaks = [
        (row, memory_error(row, candidate)) for row, candidate in found if row.peak and row.stated
    ]
    tables = {
        "throughput": errors_by(speed, "source", lambda row: row.source)
        + errors_by(speed, "gpu", lambda row: row.request.cluster.gpu.name)
        + errors_by(speed, "zero", lambda row: f"zero {row.plan.zero}")
        + errors_by(speed, "gpus", lambda row: f"{row.plan.gpus} GPUs"),
        "cautioned, never fitted": errors_by(
            careful, "source", lambda row: f"{row.source} {row.request.cluster.gpu.name}"
        ),
        "memory": errors_by(peaks, "source", lambda row: row.source),
        "order": orders(found),
        "scaling": scaling(found),
    }
    for name, lines in tables.items():
        print(f"\n{name}")
        _print(lines)
    summary = _summary(rows, speed, peaks, tables["order"]) | outcomes(found)
    print("\n" + "\n".join(f"{key}: {value:.4g}" for key, value in summary.items()))
    write("published", [{"table": k, **row} for k, lines in tables.items() for row in lines],
          summary)  # fmt: skip
    return 0


def _print(lines: Sequence[Mapping[str, Any]]) -> None:
    """Print one table for every set of columns."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[tuple(line)].append(line)
    print("\n\n".join(table(group) for group in groups.values()))


def _summary(
    rows: Sequence[Row],
    speed: Sequence[tuple[Row, float]],
    peaks: Sequence[tuple[Row, float]],
    order: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
    errors, memory, floor = [abs(e) for _, e in speed], [abs(e) for _, e in peaks], noise(rows)
    return {
        "usable_rows": len(rows),
        "throughput_rows": len(errors),
        "throughput_median_percent": 100 * median(errors),
        "throughput_p90_percent": 100 * percentile(errors, 0.9),
        "noise_median_percent": 100 * median(floor),
        "noise_p90_percent": 100 * percentile(floor, 0.9),
        "memory_rows": len(memory),
        "memory_median_percent": 100 * median(memory),
        "tau": _pooled(order, "tau", "pairs"),
        "tau_ceiling": _pooled(order, "ceiling", "ceiling_pairs"),
        "tau_clear_pairs": _pooled(order, "clear", "clear_pairs"),
        "clear_pairs_percent": 100 * _total(order, "clear_pairs") / _total(order, "pairs"),
        "sweeps": len(order),
        "sweeps_tau_median": median(float(row["tau"]) for row in order),
    }


def _pooled(rows: Sequence[Mapping[str, Any]], value: str, weight: str) -> float:
    return sum(float(row[value]) * int(row[weight]) for row in rows) / _total(rows, weight)


def _total(rows: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(int(row[name]) for row in rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
