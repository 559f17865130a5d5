"""fp16: the same steps at any number of ranks and any stage, also where gradients overflow."""

from __future__ import annotations

import json
import shutil

import pytest
from deepspeed.accelerator import get_accelerator

from tests.engine import checkpoint_worker as checkpoints
from tests.engine import invariance_worker as worker
from tests.engine.test_invariance import EQUAL, difference_of
from tests.support.ranks import together
from train.engine.scale import FIRST, LEAST, WINDOW, LossScale
from train.engine.start import require_device
from train.errors import ConfigError

PROMISED = 2e-3
RANKS = {
    1: ["fp16-usual-zero1", "fp16-huge-zero2-offload", "short-bf16", "short-fp32"],
    2: ["fp16-huge-zero1", "fp16-huge-zero3-offload", "fp16-huge-zero3"],
    3: ["fp16-usual-zero3", "fp16-huge-zero2"],
}


@pytest.fixture(scope="module")
def runs(tiny, ragged, tmp_path_factory):
    require_fp16()
    out = tmp_path_factory.mktemp("fp16")
    for ranks, variants in RANKS.items():
        together(ranks, worker.train, variants, str(tiny), str(ragged), out, timeout=1200)
    return {ranks: json.loads((out / f"ranks{ranks}.json").read_text()) for ranks in RANKS}


def require_fp16() -> None:
    if not get_accelerator().is_fp16_supported() or shutil.which("g++") is None:
        pytest.skip("this processor has no fp16, or DeepSpeed's CPU Adam no g++")


def test_every_cell_makes_the_same_steps(runs, capsys):
    cells = {(n, name): steps for n in runs for name, steps in runs[n].items() if "fp16" in name}
    base = runs[1]["fp16-usual-zero1"]
    table = {at: difference_of("loss", base, steps) for at, steps in cells.items()}
    for steps in cells.values():
        assert [[s[key] for key in EQUAL] for s in steps] == [
            [s[key] for key in EQUAL] for s in base
        ]
    with capsys.disabled():
        print("\n", {at: f"{value:.1e}" for at, value in table.items()})
    assert max(table.values()) <= PROMISED, table
    assert base[-1]["loss"] < base[0]["loss"]


def test_it_is_the_mathematics_of_fp32(runs, capsys):
    half, brain = (runs[1][name] for name in ("fp16-usual-zero1", "short-bf16"))
    found = difference_of("loss", runs[1]["short-fp32"], half)
    with capsys.disabled():
        print(f"\nfp16 against fp32: {found:.1e}")
    assert found < difference_of("loss", runs[1]["short-fp32"], brain)
    norms = [
        (a["grad_norm"], b["grad_norm"]) for a, b in zip(runs[1]["short-fp32"], half, strict=True)
    ]
    assert all(abs(a - b) / a < 2e-2 for a, b in norms)


def test_an_overflow_is_counted_and_its_step_repeated(runs):
    for n in runs:
        for name, steps in runs[n].items():
            skipped = [step["skipped"] for step in steps]
            assert any(skipped) == ("huge" in name), (n, name, skipped)
            assert [step["step"] for step in steps] == list(range(1, 7))


def test_a_checkpoint_goes_on_at_another_number_of_ranks_and_stage(tiny, ragged, tmp_path):
    require_fp16()
    where = (str(tiny), str(ragged), tmp_path)
    together(2, checkpoints.save, ["fp16-zero1", "fp16-zero3"], *where)
    pairs = [("2-fp16-zero1", "fp16-zero3"), ("2-fp16-zero3", "fp16-zero2")]
    together(1, checkpoints.resume, pairs, *where)
    for run, variant in pairs:
        result = json.loads((tmp_path / "resumed-1.json").read_text())[f"{run} {variant}"]
        whole = json.loads((tmp_path / run / "records.json").read_text())[checkpoints.SAVED :]
        assert result["equal"], (run, variant)
        assert [r["hash"] for r in result["records"]] == [r["hash"] for r in whole]
        assert difference_of("loss", whole, result["records"]) <= PROMISED


def test_the_scale_is_halved_to_its_least_and_doubled_after_a_while():
    scale = LossScale.of("fp16")
    assert scale.value == FIRST
    while scale.halved():
        pass
    assert scale.value == LEAST
    for _ in range(WINDOW):
        assert scale.value == LEAST
        scale.count()
    assert scale.value == 2 * LEAST


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_other_precisions_are_not_scaled(precision):
    scale = LossScale.of(precision)
    assert not scale.halved()
    for _ in range(WINDOW):
        scale.count()
    assert scale.value == 1.0


def test_a_device_without_fp16_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: False)
    with pytest.raises(ConfigError, match="--precision fp16 needs a GPU.*use --precision fp32"):
        require_device("fp16")
    require_device("bf16")
