"""What pipelines and tensor ranks are predicted to gain over ZeRO alone, by cluster and model.

    python bench/degrees.py            the table of docs/planner.md, in a few seconds

Ragged rows are lognormal(5.2, 1), cut at 1,024 tokens. No figure here is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train.planning import Candidate, PlanRequest, built_in, choose, cluster_of, find_gpu

# Hosts, GPUs a host, the GPU, and what a host's adapters carry together.
CLUSTERS = (
    (8, 4, "A100-SXM-80GB", "4x200Gb"),
    (8, 4, "A100-SXM-80GB", "1x200Gb"),
    (8, 8, "A100-SXM-80GB", "1x100Gb"),
    (8, 8, "A100-SXM-80GB", "1x25Gb"),
    (64, 8, "H100-SXM", "8x400Gb"),
    (16, 4, "MI210", "4x100Gb"),
)
MODELS = ("mistral-7b", "llama-3-70b")
BATCH, BLOCK = 256, 1024


def ragged() -> list[int]:
    """Lengths of 2,000 samples, in tokens."""
    drawn = np.exp(np.random.default_rng(0).normal(5.2, 1.0, 2000)).astype(int)
    return [int(length) for length in np.clip(drawn, 8, BLOCK)]


def best(request: PlanRequest) -> tuple[Candidate | None, Candidate | None]:
    """Return the plan that is chosen, and the fastest that fits with neither degree."""
    choice = choose(request)
    flat = [c for c in choice.possible if c.plan.pp * c.plan.tp == 1]
    return choice.chosen, min(flat, key=lambda c: c.time.total, default=None)


def rows() -> Iterator[tuple[str, ...]]:
    """Yield the cells of the table."""
    for hosts, local, gpu, nic in CLUSTERS:
        sizes = [(f"n{number}", local) for number in range(hosts)]
        cluster = cluster_of(sizes, {"nic": nic}, find_gpu(gpu))
        for model in MODELS:
            cells = []
            for lengths in (None, ragged()):
                request = PlanRequest(
                    built_in(model), cluster, BATCH, BLOCK, lengths=lengths, fused=True
                )
                cells.append(told(*best(request)))
            yield f"{hosts} x {local} {gpu}, {nic}", model, *cells


def told(chosen: Candidate | None, flat: Candidate | None) -> str:
    """Return a plan's degrees, and how much faster it is than ZeRO alone."""
    if chosen is None:
        return "nothing fits"
    plan = chosen.plan
    if plan.pp * plan.tp == 1:
        return f"No PP, No TP (ZeRO {plan.zero})"
    degrees = [f"{name} : {n}" for name, n in (("PP", plan.pp), ("TP", plan.tp)) if n > 1]
    gain = "" if flat is None else f", {100 * (flat.time.total / chosen.time.total - 1):+.0f} %"
    return f"{', '.join(degrees)}{gain}"


def main() -> None:
    print("| cluster, adapters a host | model | full blocks | ragged rows |\n|---|---|---|---|")
    for row in rows():
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
