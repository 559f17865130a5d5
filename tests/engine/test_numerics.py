"""Every way of taking a step against the plain fp32 one, at the tolerances of bench/numerics.py."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from tests.support.launching import ROOT


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    out = tmp_path_factory.mktemp("numerics") / "found"
    words = [sys.executable, "bench/numerics.py", "--steps", "4", "--out", str(out)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert out.with_suffix(".json").is_file(), done.stderr[-3000:]
    found = json.loads(out.with_suffix(".json").read_text())
    assert done.returncode == (0 if all(row["met"] for row in found["rows"]) else 1)
    return {row["way"]: row for row in found["rows"]}


@pytest.mark.parametrize("way", [
    "packed", "packed, ZeRO 3", "padded", "recomputed, selective", "recomputed, full",
    "packed in bf16", "packed in bf16, recomputed",
])  # fmt: skip
def test_a_step_is_the_plain_step(rows, way):
    row = rows[way]
    for name in ("loss", "norm", "weights"):
        assert row[name] <= row[f"{name}_allowed"], (way, name, row)


@pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed's CPU Adam needs g++")
@pytest.mark.parametrize("way", ["offloaded optimizer", "offloaded, all"])
def test_an_offloaded_step_is_the_plain_step(rows, way):
    assert rows[way]["met"], rows[way]


def test_the_measure_sees_a_change_of_precision(rows):
    exact, rounded = rows["packed"], rows["packed in bf16"]
    assert rounded["loss"] > exact["loss_allowed"]
    assert rounded["weights"] > exact["weights_allowed"]


def test_the_tolerance_is_far_above_what_fp32_itself_loses(rows):
    assert rows["plain fp64"]["loss"] < rows["packed"]["loss_allowed"] / 10
