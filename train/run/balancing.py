"""What each replica takes of a step: by its ranks, their speeds as told, and then as measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from train.data.feed import Placement
from train.data.pack import Load
from train.planning.balance import Pace, corrected, of_replica
from train.planning.plan import Plan
from train.planning.shares import Share

NAMED = 4  # slow ranks that are named at most


def loads(plan: Plan, capacity: int, shares: Sequence[Share]) -> tuple[Load, ...]:
    """Return what each replica takes, where they differ: as many tokens a rank as the smallest.

    Args:
        capacity: tokens of a micro-batch of the smallest replica.
        shares: of each replica where GPUs differ; its capacity goes over that one.
    """
    if not (plan.replicas or shares):
        return ()
    alike = _alike(plan, capacity)
    return tuple(
        Load(max(load.capacity, share.capacity), share.speed)
        for load, share in zip(alike, shares, strict=True)
    ) if shares else alike  # fmt: skip


def _alike(plan: Plan, capacity: int) -> tuple[Load, ...]:
    """Return what the replicas take where all ranks are alike."""
    return tuple(Load(capacity * size // plan.sp, float(size)) for size in plan.sizes)


def rebalanced(plan: Plan, placement: Placement, paces: Sequence[Pace]) -> tuple[Placement, str]:
    """Return the placement after the ranks were measured, and what is told; empty: it stays.

    Args:
        paces: of each rank of the job.
    """
    members = plan.members
    given = placement.loads or _alike(plan, placement.capacity)
    before = [load.speed / size for load, size in zip(given, plan.sizes, strict=True)]
    found = corrected(before, [of_replica([paces[rank] for rank in own]) for own in members])
    if list(found) == before:
        return placement, ""
    moved = tuple(
        replace(load, speed=speed * size)
        for load, speed, size in zip(given, found, plan.sizes, strict=True)
    )
    slowest = [min(own, key=lambda rank: paces[rank].rate) for own in members]
    return replace(placement, loads=moved), _told(slowest, found)


def _told(ranks: Sequence[int], speeds: Sequence[float]) -> str:
    """Name the slow ones of `ranks`, each the slowest of its replica, by the replicas' speeds."""
    fastest = max(speeds)
    slow = sorted((speed / fastest, rank) for speed, rank in zip(speeds, ranks, strict=True))
    names = [f"rank {rank} at {share:.2f}" for share, rank in slow if share < 1]
    if not names:
        return "All ranks compute equally fast again: their shares of the work are equal"
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (
        f"As measured, {', '.join(names[:NAMED])}{more} of the fastest's speed: each replica gets "
        "work for its own"
    )
