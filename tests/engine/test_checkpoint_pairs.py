"""Saved on M ranks at one ZeRO stage, resumed on N at another: the same state, the same curve."""

from __future__ import annotations

import json
from itertools import product

import pytest

from tests.engine import checkpoint_worker as worker
from tests.support.ranks import together

RANKS = (1, 2, 3, 4, 8)
SAMPLED = RANKS[:4]
FP32, BF16 = 1e-6, 2e-3


def sample() -> dict[int, list[tuple[str, str]]]:
    """Every pair of up to four ranks once, and with them every pair of stages: four are saved."""
    return {n: [(f"{m}-zero{m - 1}", f"zero{(m + n) % 4}") for m in SAMPLED] for n in SAMPLED}


def everything() -> dict[int, list[tuple[str, str]]]:
    pairs = [(f"{m}-zero{a}", f"zero{b}") for m, a, b in product(RANKS, range(4), range(4))]
    return dict.fromkeys(RANKS, pairs)


@pytest.fixture(scope="module")
def resumed(tiny, ragged, tmp_path_factory, request):
    """What came of every pair, and the runs that were not interrupted, by name."""
    out = tmp_path_factory.mktemp("pairs")
    chosen = everything() if request.config.getoption("--exhaustive") else sample()
    chosen[4] = [*chosen[4], (chosen[4][0][0], "hpz"), (chosen[4][0][0], "sp2-zero3")]
    chosen[2] = [*chosen[2], ("4-sp2-zero1", "sp2-zero3"), ("1-zero0", "pp2-zero1")]
    chosen[3] = [*chosen[3], ("4-sp2-zero1", "zero2"), ("2-pp2-zero0", "zero3")]
    # Parts of matrices in other parts, in whole ones and the other way round, also on two stages.
    chosen[4] = [*chosen[4], ("2-tp2-zero2", "tp4-zero3"), ("1-zero0", "tp2-pp2-zero1")]
    chosen[2] = [*chosen[2], ("4-tp4-zero3", "tp2-zero2"), ("4-tp2-pp2-zero1", "zero0")]
    named = {run for pairs in chosen.values() for run, _ in pairs}
    for m in chosen:
        variants = sorted(run.split("-", 1)[1] for run in named if run.startswith(f"{m}-"))
        together(m, worker.save, variants, str(tiny), str(ragged), out)
    found = {}
    for n, pairs in chosen.items():
        together(n, worker.resume, pairs, str(tiny), str(ragged), out, timeout=1800)
        results = json.loads((out / f"resumed-{n}.json").read_text())
        found |= {(*key.split(), n): value for key, value in results.items()}
    whole = {run: json.loads((out / run / "records.json").read_text()) for run in named}
    return found, whole


def difference(one, other) -> float:
    """The largest relative difference of two stretches' losses, whose other facts must be equal."""
    assert len(one) == len(other) > 0
    for left, right in zip(one, other, strict=True):
        assert all(left[key] == right[key] for key in ("step", "hash", "lr"))
    return max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(one, other, strict=True))


def test_a_checkpoint_of_any_ranks_and_stage_resumes_at_any_other(resumed, capsys):
    found, whole = resumed
    base = whole["1-zero0"] if "1-zero0" in whole else next(iter(whole.values()))
    table = {}
    for (run, variant, n), result in found.items():
        assert result["equal"], f"{run} was not loaded bit for bit at {n} ranks under {variant}"
        assert result["read"] <= result["allowed"], f"{run} at {n} ranks reads what is not its own"
        table[run, variant, n] = difference(result["records"], base[worker.SAVED :])
    with capsys.disabled():
        print_table(table)
    assert max(table.values()) <= FP32
    assert base[-1]["loss"] < base[0]["loss"] - 0.2


def print_table(table) -> None:
    ranks = sorted({n for _, _, n in table})
    print(f"\n\n{len(table)} resumes, state bit-equal after each; the largest relative difference")
    print("of a loss from the uninterrupted run on 1 rank, and the stages that were tried")
    print("saved on    " + "".join(f"resumed on {n:<14}" for n in ranks))
    for m in ranks:
        row = []
        for n in ranks:
            cells = {k: d for k, d in table.items() if k[0].startswith(f"{m}-") and k[2] == n}
            stages = " ".join(sorted(f"{run[-1]}→{variant[-1]}" for run, variant, _ in cells))
            stages = stages if len(cells) < 4 else f"{len(cells)} pairs"
            row.append(f"{max(cells.values()):.0e} ({stages})".ljust(25))
        print(f"{m:<12}" + "".join(row))
    print(f"largest: {max(table.values()):.1e} (promised: {FP32:.0e})")


def test_the_sample_of_pairs_covers_every_change_of_ranks_and_of_stage():
    pairs = [(run, variant, n) for n, some in sample().items() for run, variant in some]
    assert {(run.split("-")[0], n) for run, _, n in pairs} == {
        (str(m), n) for m in SAMPLED for n in SAMPLED
    }
    assert len({(run[-1], variant[-1]) for run, variant, _ in pairs}) == 16
