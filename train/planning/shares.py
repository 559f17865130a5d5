"""What each replica gets of a step where GPUs differ: work for its speed, rows for its memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from train.planning.lengths import lengths_of
from train.planning.memory import footprint
from train.planning.plan import Plan
from train.planning.predict import MARGIN
from train.planning.request import PlanRequest


@dataclass(frozen=True)
class Share:
    """One replica's: tokens of its micro-batches at most, and what it is worth in slowest GPUs."""

    capacity: int
    speed: float


def shares_of(request: PlanRequest, plan: Plan) -> tuple[Share, ...]:
    """Return the share of each replica; none where all GPUs are alike.

    The ranks of a replica have equal parts, so its slowest and its smallest decide. A replica's
    rows may be longer than the smallest's by what its further memory holds, but not where their
    length is pinned.
    """
    cluster = request.cluster
    if not (cluster.speeds or cluster.each):
        return ()
    speeds = cluster.speeds or (1.0,) * cluster.gpus
    token = 0.0 if request.pins.micro_tokens else _bytes_of_a_token(request, plan)
    most = request.batch_size * lengths_of(request.lengths, request.block_size).longest
    found = []
    for gpus, size in zip(plan.members, plan.sizes, strict=True):
        memory = min(cluster.each[gpu].memory for gpu in gpus) if cluster.each else 0.0
        spare = (1 - MARGIN) * max(0.0, memory - cluster.gpu.memory)
        tokens = plan.micro_tokens + (int(spare / token) if token else 0)
        tokens = max(plan.micro_tokens, min(tokens, most))
        found.append(Share(tokens * size // plan.sp, size * min(speeds[gpu] for gpu in gpus)))
    return tuple(found)


def _bytes_of_a_token(request: PlanRequest, plan: Plan) -> float:
    """Return by how much a GPU's peak grows with each token of the smallest replica's rows."""
    lengths = lengths_of(request.lengths, request.block_size)
    tokens = plan.micro_tokens
    longer = footprint(request, replace(plan, micro_tokens=2 * tokens), lengths).gpu.total
    return (longer - footprint(request, plan, lengths).gpu.total) / tokens


def describe_shares(request: PlanRequest, plan: Plan, shares: Sequence[Share]) -> tuple[str, ...]:
    """Say what the replicas on each kind of GPU get; nothing where all are alike."""
    whole = sum(share.speed for share in shares)
    kinds: Counter[tuple[str, float, int]] = Counter()
    for gpus, share in zip(plan.members, shares, strict=False):
        each = request.cluster.each
        names = dict.fromkeys((each[gpu] if each else request.cluster.gpu).name for gpu in gpus)
        kinds["+".join(names), share.speed, share.capacity] += 1
    return tuple(
        f"{count} replica{'s' * (count > 1)} on {name}: {100 * speed / whole:.1f} % of the work"
        f"{' each' * (count > 1)}, micro-batches of at most {capacity} tokens"
        for (name, speed, capacity), count in kinds.items()
    )
