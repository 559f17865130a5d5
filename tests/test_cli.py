import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train.cli import COMMANDS, main, run

ROOT = Path(__file__).resolve().parents[1]


def test_without_a_command_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("anyrank 0.")


def test_an_unknown_command_is_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["plam"])
    assert caught.value.code == 2
    assert "no command 'plam'; did you mean 'plan'?" in capsys.readouterr().err


def test_what_a_terminal_cannot_show_is_replaced() -> None:
    found = subprocess.run(
        [sys.executable, "-P", "-m", "train.cli", "mödel"],
        cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (found.returncode, "no command 'm?del'" in found.stderr) == (2, True)


def test_every_command_is_there() -> None:
    missing = [
        name for name, (module, _) in COMMANDS.items() if not importlib.util.find_spec(module)
    ]
    assert missing == []


def test_the_command_starts_without_importing_anything_heavy() -> None:
    script = (
        "import sys; import train.cli; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    began = time.monotonic()
    shown = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert shown.stdout.strip() == "[]"
    assert time.monotonic() - began < 5
