"""A few of the random changes that `python -m tests.support.model_mutations` makes."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_models_files_changed_at_random_run_or_are_refused_in_a_sentence():
    found = subprocess.run(
        [sys.executable, "-m", "tests.support.model_mutations", "--count", "8", "--seed", "7"],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout
    assert found.stdout.count(": 8 mutations, ") == 4
