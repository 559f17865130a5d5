"""Clusters side by side: what the same training takes on each, in hours, GPU-hours and money."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from train.planning.advice import smallest
from train.planning.cluster import Cluster
from train.planning.explain import describe_model
from train.planning.request import Candidate, Choice, PlanRequest
from train.planning.search import choose
from train.text import GIB, align, fitted

HOUR = 3600.0
HEADS = ("GPUs", "hosts", "ZeRO", "recompute", "offload", "GiB", "host", "s", "tokens/s", "hours",
         "GPU-hours", "cost")  # fmt: skip
# Of these a narrow terminal shows nothing.
SPARED = ("hosts", "offload", "host", "s")


@dataclass(frozen=True)
class Training:
    """How long a run is: optimizer steps, samples and real tokens of all of them."""

    steps: int
    samples: int
    tokens: float
    epochs: int

    def seconds(self, candidate: Candidate) -> float:
        """Return the time of all steps; start, evaluations and saves come on top."""
        return self.steps * candidate.time.total


@dataclass(frozen=True)
class Offer:
    """One cluster with what was planned for it; `price` of one GPU for one hour, if known."""

    request: PlanRequest
    choice: Choice
    price: float | None

    @property
    def cluster(self) -> Cluster:
        """The GPUs that are offered."""
        return self.request.cluster

    @property
    def name(self) -> str:
        """How many of which GPU: `8 x H100-SXM`."""
        return f"{self.cluster.gpus} x {self.cluster.gpu.name}"

    def gpu_hours(self, training: Training) -> float | None:
        """Return hours times GPUs; None where nothing fits."""
        chosen = self.choice.chosen
        return training.seconds(chosen) / HOUR * self.cluster.gpus if chosen else None

    def cost(self, training: Training) -> float | None:
        """Return what the GPUs cost, in the price's unit; None where it is not known."""
        hours = self.gpu_hours(training)
        return None if hours is None or self.price is None else hours * self.price

    def to_json(self, training: Training | None) -> dict[str, Any]:
        """Return the object of `--compare --json`; a chosen plan as in `--json`."""
        chosen = self.choice.chosen
        least = smallest(self.request, self.choice)
        found: dict[str, Any] = {
            "gpu": self.cluster.gpu.name, "gpus": self.cluster.gpus,
            "hosts": len(self.cluster.sizes), "fits": chosen is not None,
            "chosen": chosen.to_json() if chosen else None,
            "reason": "" if chosen else f"{least.reason} of {least.need:.0f} bytes",
        }  # fmt: skip
        if training is None:
            return found
        return found | spent(training, chosen, self.cluster.gpus, self.price)


def spent(
    training: Training, chosen: Candidate | None, gpus: int, price: float | None
) -> dict[str, Any]:
    """Return what `--json` tells of a training: seconds, GPU-hours, and the cost if it is known."""
    seconds = training.seconds(chosen) if chosen else None
    hours = None if seconds is None else seconds / HOUR * gpus
    return {
        "seconds": seconds,
        "gpu_hours": hours,
        "cost": None if hours is None or price is None else hours * price,
    }


def offers(
    request: PlanRequest, clusters: Sequence[tuple[Cluster, float | None]]
) -> tuple[Offer, ...]:
    """Plan the same training for each cluster; each comes with the price of a GPU-hour or None."""
    requests = [(replace(request, cluster=cluster), price) for cluster, price in clusters]
    return tuple(Offer(each, choose(each), price) for each, price in requests)


def describe(training: Training, dataset: str | None) -> str:
    """Say how long a training is: `3 epochs of 1000 samples = 46 steps, 2.9 million tokens`."""
    of = f" of {dataset}" if dataset else ""
    passes = f"{training.epochs} epochs of " if training.epochs > 1 else ""
    return (
        f"{passes}{training.samples // training.epochs} samples{of} = {training.steps} steps, "
        f"{training.tokens / 1e6:.1f} million tokens"
    )


def told(training: Training, chosen: Candidate, gpus: int, price: float | None) -> str:
    """Say what a training takes on one cluster."""
    found = spent(training, chosen, gpus, price)
    cost = "" if found["cost"] is None else f", {found['cost']:,.2f} at {price:g} a GPU-hour"
    return (
        f"{length(found['seconds'])}, {found['gpu_hours']:,.1f} GPU-hours{cost}; starts, "
        "evaluations and saves come on top"
    )


def length(seconds: float) -> str:
    """Write a time as one would plan with it: `40 s`, `12 minutes`, `3.4 hours`, `2.1 days`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR:
        return f"{seconds / 60:.0f} minutes"
    return (
        f"{seconds / HOUR:.1f} hours" if seconds < 48 * HOUR else f"{seconds / HOUR / 24:.1f} days"
    )


def compared_header(request: PlanRequest, training: Training | None) -> str:
    """Say what is planned for all offers."""
    lines = [
        describe_model(request),
        f"{request.batch_size} samples of up to {request.block_size} tokens a step",
    ]
    return "\n".join([*lines, *([describe(training, None)] if training else [])])


def compared(found: Sequence[Offer], training: Training | None, width: int | None) -> str:
    """Return the table of offers and what stands out in it.

    Args:
        width: of the terminal, in characters.
    """
    heads = [head for head in HEADS if training or head not in HEADS[9:]]
    heads = [h for h in heads if h != "cost" or any(one.price is not None for one in found)]
    narrow = [head for head in heads if head not in SPARED]
    wide, short = _lines(found, heads, training), _lines(found, narrow, training)
    fits = width is None or max(map(len, wide)) <= width
    lines = "\n".join(wide if fits else short)
    units = (
        "GiB of one GPU, and host: GiB of one host; s: seconds of a step. "
        if fits
        else ("GiB: memory of one GPU. ")
    )
    words = [f"{units}A host is taken to have twice the memory of its GPUs.",
             *_standing_out(found, training)]  # fmt: skip
    return "\n\n".join((lines, *(fitted(text, width) for text in words)))


def _lines(found: Sequence[Offer], heads: Sequence[str], training: Training | None) -> list[str]:
    rows = [tuple(heads), *(_row(one, heads, training) for one in found)]
    return align(rows, [True, *([False] * (len(heads) - 1))])


def _row(one: Offer, heads: Sequence[str], training: Training | None) -> tuple[str, ...]:
    chosen = one.choice.chosen
    if chosen is None:
        least = smallest(one.request, one.choice)
        hosts = (str(len(one.cluster.sizes)),) if "hosts" in heads else ()
        said = f"does not fit: {least.reason}, {least.need / GIB:.1f} of {least.have / GIB:.1f} GiB"
        return (one.name, *hosts, said)
    cells = {
        "GPUs": one.name,
        "hosts": str(len(one.cluster.sizes)),
        "ZeRO": str(chosen.plan.zero),
        "recompute": chosen.plan.recompute,
        "offload": chosen.plan.offload,
        "GiB": f"{chosen.memory.total / GIB:.1f}",
        "host": f"{chosen.host_memory / GIB:.1f}",
        "s": f"{chosen.time.total:.2f}",
        "tokens/s": f"{chosen.tokens_per_s:.0f}",
    }
    if training is not None:
        cost = one.cost(training)
        cells |= {
            "hours": f"{training.seconds(chosen) / HOUR:,.2f}",
            "GPU-hours": f"{one.gpu_hours(training):,.1f}",
            "cost": "-" if cost is None else f"{cost:,.2f}",
        }
    return tuple(cells[head] for head in heads)


def _standing_out(found: Sequence[Offer], training: Training | None) -> Iterator[str]:
    """Say which offer is the fastest, and which takes least."""
    able = [(one, one.choice.chosen) for one in found if one.choice.chosen is not None]
    if not able:
        yield "Nothing fits on any of them."
        return
    fastest, plan = min(able, key=lambda pair: -pair[1].tokens_per_s)
    if training is None or plan is None:
        yield (
            f"Fastest: {fastest.name}. With --samples or --dataset-name-or-path the hours are told."
        )
        return
    said = f"Fastest: {fastest.name}, {length(training.seconds(plan))}."
    hours = [(one.gpu_hours(training) or 0.0, one) for one, _ in able]
    least = min(hours, key=lambda pair: pair[0])
    said += f" Fewest GPU-hours: {least[1].name}, {least[0]:,.1f}."
    costs = [(cost, one) for one, _ in able if (cost := one.cost(training)) is not None]
    if costs:
        cheap = min(costs, key=lambda pair: pair[0])
        said += f" Cheapest: {cheap[1].name}, {cheap[0]:,.2f}."
    yield said + " Starts, evaluations and saves come on top."
