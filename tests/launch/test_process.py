import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from train.launch.process import run

ROOT = Path(__file__).resolve().parents[2]
WRAPPER = "import os, sys; from train.launch.process import run; " + (
    "sys.exit(run(sys.argv[1:], os.environ, grace=1.0))"
)


def start(tmp_path: Path, script: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start `script` under run() and return the wrapper and the process id that it wrote."""
    note = tmp_path / "pid"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NOTE": str(note)}
    wrapper = subprocess.Popen([sys.executable, "-c", WRAPPER, "bash", "-c", script], env=env)
    deadline = time.monotonic() + 10
    while not (note.exists() and note.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return wrapper, int(note.read_text())


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_the_exit_code_is_the_commands() -> None:
    assert run(["bash", "-c", "exit 3"], os.environ) == 3
    assert run(["true"], os.environ) == 0


def test_a_command_killed_by_a_signal_is_no_success() -> None:
    assert run(["bash", "-c", "kill -9 $$"], os.environ) == 128 + signal.SIGKILL


def test_what_a_finished_command_left_behind_is_ended(tmp_path: Path) -> None:
    wrapper, pid = start(tmp_path, "sleep 60 & echo $! > $NOTE; exit 5")
    assert wrapper.wait(10) == 5
    assert gone(pid)


def test_a_signal_reaches_the_whole_group(tmp_path: Path) -> None:
    wrapper, pid = start(tmp_path, "sleep 60 & echo $! > $NOTE; wait")
    wrapper.send_signal(signal.SIGTERM)
    assert wrapper.wait(10) == 128 + signal.SIGTERM
    assert gone(pid)


def test_a_group_that_ignores_the_signal_is_killed_after_the_grace(tmp_path: Path) -> None:
    wrapper, pid = start(tmp_path, "trap '' TERM INT; sleep 60 & echo $! > $NOTE; wait; wait")
    wrapper.send_signal(signal.SIGINT)
    assert wrapper.wait(10) != 0
    assert gone(pid)
