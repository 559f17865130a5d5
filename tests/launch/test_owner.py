"""A run folder has one owner: a second start is refused and names it; the dead own nothing."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.launch.test_supervise import finish, start, steps, wait_for_step

ROOT = Path(__file__).resolve().parents[2]
OWN = """
import sys, time
from pathlib import Path
from train.errors import ConfigError
from train.launch.owner import own
try:
    own(Path(sys.argv[1]), print)
except ConfigError as error:
    sys.exit(str(error))
print("mine", flush=True)
time.sleep(float(sys.argv[2]))
"""


def owner(folder: Path, seconds: float) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", OWN, str(folder), str(seconds)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, cwd=ROOT, text=True, **pipes)


def test_a_second_launcher_in_one_run_folder_is_refused_and_the_first_goes_on(
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "r"
    first = start(run_dir, 2, "--steps", "300", "--checkpoints")
    wait_for_step(run_dir, 2)
    began = time.monotonic()
    second = start(run_dir, 2, "--steps", "300")
    _, err = second.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert second.returncode == 2
    told = f"[error] {run_dir} is being run by process {first.pid} on {socket.gethostname()}, since"
    assert err.startswith(told) and err.count("\n") == 1
    assert f"'anyrank resize {run_dir} N' gives it other GPUs" in err
    first.send_signal(signal.SIGTERM)
    code, _, err = finish(first, run_dir)
    assert code == 75 and "starting again" not in err
    done = steps(run_dir)
    assert done == list(range(1, len(done) + 1))


def test_a_rank_is_refused_like_a_launcher_and_the_dead_own_nothing(tmp_path: Path) -> None:
    """What `deepspeed` and `python train/main.py` do on rank 0."""
    first = owner(tmp_path / "run", 60)
    assert first.stdout is not None and first.stdout.readline() == "mine\n"
    refused = owner(tmp_path / "run", 0)
    _, err = refused.communicate(timeout=30)
    assert refused.returncode == 1 and f"is being run by process {first.pid} on" in err
    os.kill(first.pid, signal.SIGKILL)
    third = owner(tmp_path / "run", 0)
    assert third.communicate(timeout=30)[0] == "mine\n"
    assert f"process {third.pid} on" in (tmp_path / "run" / "OWNER").read_text()
    first.communicate()
