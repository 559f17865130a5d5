"""Whether runs' losses are one curve, in sentences: which are, and what makes the others others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from train.report.facts import differences
from train.report.runs import Run, compare, curves, limit_of, ranks


def verdict(runs: Sequence[Run]) -> str:
    """Say whether the runs' losses are one curve; in further sentences what was not read."""
    return ". ".join(sentences(runs))


def sentences(runs: Sequence[Run]) -> list[str]:
    """Return the sentences of the verdict."""
    notices = [f"{run.name}: {run.notice}" for run in runs if run.notice]
    return [*_sentences(runs), *notices]


def tone(runs: Sequence[Run]) -> str:
    """Return how the verdict sounds: `good`; `plain` where runs were set otherwise; else `bad`."""
    others = [group[0] for group in curves(runs)[1:]]
    if not others:
        return "good"
    return "plain" if all(differences(runs[0], run) for run in others) else "bad"


def _sentences(runs: Sequence[Run]) -> Iterator[str]:
    if len(runs) < 2:
        yield f"{runs[0].name}: {ranks(*runs[0].gpus)}, {len(runs[0].steps)} steps"
        return
    groups = curves(runs)
    for group in groups:
        if len(group) > 1:
            yield _one_curve(group, named=len(groups) > 1)
    for group in groups[1:]:
        yield _apart(runs[0], group[0])


def _one_curve(group: Sequence[Run], *, named: bool) -> str:
    found = [(run, compare(group[0], run)) for run in group[1:]]
    run, worst = max(found, key=lambda pair: pair[1].relative if pair[1] else 0.0)
    assert worst is not None
    counts = [ranks(*run.gpus) for run in group]
    if named:
        counts = [f"{run.name} ({count})" for run, count in zip(group, counts, strict=True)]
    return (
        f"One curve: {', '.join(counts)} give the same losses (largest difference "
        f"{worst.relative:.1e}, in step {worst.step} of {run.name})"
    )


def _apart(base: Run, run: Run) -> str:
    """Say what makes a run another than the first: by its arguments, if they tell."""
    found, named = compare(base, run), differences(base, run)
    by = f": {', '.join(named)}" if named else ""
    if found is None:
        return f"{run.name} has no step in common with {base.name}{by}"
    if found.apart is not None:
        return (
            f"Different runs: {run.name} differs from {base.name} in samples, learning rate or "
            f"token counts from step {found.apart}{by}"
        )
    return (
        f"Not one curve: largest difference {found.relative:.1e}, in step {found.step} of "
        f"{run.name}, more than the {limit_of((base, run)):.0e} promised{by}"
    )
