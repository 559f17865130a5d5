"""The questions for the first minutes on a GPU, asked of small sizes, so that they cannot rot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_question_is_asked_and_answered_here(tmp_path: Path) -> None:
    answers = tmp_path / "answers.json"
    subprocess.run(
        ["bash", str(ROOT / "bench/first_gpu.sh"), "--cpu", "--json", str(answers)],
        env={**os.environ, "PYTHON": sys.executable},
        check=False,
    )
    rows = json.loads(answers.read_text())
    assert [row for row in rows if not row["well"]] == []
    assert {row["question"] for row in rows} == {
        "machine", "probe", "fp32_attention", "out_of_memory", "kernels", "pace",
        "quickstart", "plans",
    }  # fmt: skip
