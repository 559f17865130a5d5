"""Streams that are closed, full or left by their reader: nothing is raised, and a run goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAIN = f"{sys.executable} {ROOT}/train/main.py"
LAUNCH = f"{ROOT}/launch.sh"
MISTAKE = "--model-name-or-path . --dataset-name-or-path ."  # found after the first stage is told


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "XDG_CACHE_HOME": str(folder / "cache")}
    words = ["bash", "-o", "pipefail", "-c", line]
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


def test_a_full_stdout_is_told_on_stderr_and_ends_nothing(tmp_path: Path) -> None:
    shown = shell(f"{MAIN} {MISTAKE} > /dev/full", tmp_path)
    assert shown.returncode == 2
    lines = shown.stderr.splitlines()
    assert (
        lines[0] == "[info] stdout takes no more (No space left on device): the run goes on without"
    )
    assert len(lines) == 2 and lines[1].startswith("[error] ")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
@pytest.mark.parametrize("words", [f"{MAIN} {MISTAKE}", f"{LAUNCH} 2 --sede 1"])
def test_a_closed_stream_is_no_error(tmp_path: Path, words: str, closed: str) -> None:
    shown = shell(f"{words} {closed}", tmp_path)
    assert shown.returncode == 2
    assert "Traceback" not in shown.stdout + shown.stderr


@pytest.mark.parametrize("words", [f"{LAUNCH} --help", f"{MAIN} --help"])
def test_a_reader_that_has_seen_enough_gets_no_traceback(tmp_path: Path, words: str) -> None:
    shown = shell(f"{words} | head -1", tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.count("\n") == 1
