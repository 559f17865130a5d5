"""Hosts that come and go, behind an ssh that reaches this machine or nothing at all."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.launch.test_resize import sizes
from tests.launch.test_supervise import finish, ranks_of, start, steps, wait_for_step

# ssh [options] HOST COMMAND: runs the command here, unless DOWN/HOST says that the host is down:
# that is found out after SILENT seconds.
SSH = """#!/bin/bash
host=${@: -2:1}
[ ! -e "$DOWN/$host" ] || { sleep "${SILENT:-0}"; echo "no route to host" >&2; exit 255; }
echo $$ > "$DOWN/../pid-$host"
exec sh -c "${@: -1}"
"""
FAR = "192.0.2.1"
HOSTS = f"localhost slots=1\n{FAR} slots=2\n"


@pytest.fixture
def network(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "bin").mkdir()
    (tmp_path / "down").mkdir()
    ssh = tmp_path / "bin" / "ssh"
    ssh.write_text(SSH)
    ssh.chmod(0o755)
    return {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "DOWN": str(tmp_path / "down")}


def cut(tmp_path: Path) -> None:
    (tmp_path / "down" / FAR).touch()
    os.kill(int((tmp_path / f"pid-{FAR}").read_text()), signal.SIGKILL)


def wait_for_size(run_dir: Path, size: int) -> None:
    deadline = time.monotonic() + 60
    while sizes(run_dir)[-1:] != [size]:
        assert time.monotonic() < deadline, (run_dir / "metrics.jsonl").read_text()[-300:]
        time.sleep(0.05)


def test_a_host_that_returns_is_taken_back_twice(tmp_path: Path, network: dict[str, str]) -> None:
    run_dir = tmp_path / "r"
    words = ("--steps", "900", "--checkpoints")
    process = start(run_dir, 3, *words, hosts=HOSTS, **network)
    wait_for_step(run_dir, 2)
    for _ in range(2):
        cut(tmp_path)
        wait_for_size(run_dir, 1)
        (tmp_path / "down" / FAR).unlink()
        wait_for_size(run_dir, 3)
    time.sleep(1.5)  # for the supervisor to see its first step
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process, run_dir)
    assert code == 75, err
    assert err.count(f"host {FAR} is good again: it is taken back at the next checkpoint") == 2
    assert err.count("resized to 3 GPUs") == 2
    done = steps(run_dir)
    assert done == list(range(1, len(done) + 1))
    assert sizes(run_dir) == [3, 1, 3, 1, 3]


def test_a_host_that_was_lost_just_now_is_waited_for_only_a_moment(
    tmp_path: Path, network: dict[str, str]
) -> None:
    run_dir = tmp_path / "r"
    words = ("--steps", "150", "--checkpoints")
    process = start(run_dir, 3, *words, hosts=HOSTS, NO_REGROW="1", SILENT="30", **network)
    wait_for_step(run_dir, 2)
    cut(tmp_path)
    lost = time.monotonic()
    wait_for_size(run_dir, 1)
    assert time.monotonic() - lost < 20
    code, _, err = finish(process, run_dir)
    assert code == 0, err
    assert f"leaving out host {FAR}: it does not answer" in err
    assert (steps(run_dir), sizes(run_dir)) == (list(range(1, 151)), [3, 1])


def test_no_regrow_leaves_it_out(tmp_path: Path, network: dict[str, str]) -> None:
    run_dir = tmp_path / "r"
    words = ("--steps", "250", "--checkpoints")
    process = start(run_dir, 3, *words, hosts=HOSTS, NO_REGROW="1", **network)
    wait_for_step(run_dir, 2)
    cut(tmp_path)
    wait_for_size(run_dir, 1)
    (tmp_path / "down" / FAR).unlink()
    code, _, err = finish(process, run_dir)
    assert code == 0 and "good again" not in err
    assert sizes(run_dir) == [3, 1]


def test_what_takes_what_there_is_waits_for_the_lower_bound_and_grows_to_the_upper(
    tmp_path: Path, network: dict[str, str]
) -> None:
    run_dir = tmp_path / "r"
    hosts = HOSTS + "192.0.2.77 slots=1\n"
    for far in (FAR, "192.0.2.77"):
        (tmp_path / "down" / far).touch()
    words = ("--steps", "900", "--checkpoints")
    process = start(run_dir, 4, *words, hosts=hosts, LEAST="2", **network)
    time.sleep(6.0)
    assert ranks_of(run_dir) == []
    (tmp_path / "down" / "192.0.2.77").unlink()
    deadline = time.monotonic() + 60
    while not (run_dir / "metrics.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    wait_for_size(run_dir, 2)
    (tmp_path / "down" / FAR).unlink()
    wait_for_size(run_dir, 4)
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process, run_dir)
    assert code == 75, err
    assert err.count(f"waiting: 1 GPUs can be used, of at least 2: leaving out host {FAR}") == 1
    assert sizes(run_dir) == [2, 4]


def test_a_host_that_came_back_and_fails_is_left_out(
    tmp_path: Path, network: dict[str, str]
) -> None:
    run_dir = tmp_path / "r"
    (tmp_path / "down" / FAR).touch()
    words = ("--steps", "300", "--checkpoints", "--unfit", "3")
    process = start(run_dir, 3, *words, hosts=HOSTS, LEAST="1", **network)
    wait_for_step(run_dir, 2)
    (tmp_path / "down" / FAR).unlink()
    code, _, err = finish(process, run_dir)
    assert code == 0, err
    told = "not resized: 3 GPUs cannot do it, as is said above; what came back is left out"
    assert err.count(told) == 1 and err.count("good again") == 1
    assert (steps(run_dir), sizes(run_dir)) == (list(range(1, 301)), [1])


def test_a_stop_ends_the_waiting(tmp_path: Path, network: dict[str, str]) -> None:
    run_dir = tmp_path / "r"
    (tmp_path / "down" / FAR).touch()
    process = start(run_dir, 3, "--steps", "9", hosts=HOSTS, LEAST="2", **network)
    time.sleep(6.0)
    (run_dir / "STOP").touch()
    code, _, err = finish(process, run_dir)
    assert code == 75, err
    assert "stopped while waiting for GPUs: nothing was lost" in err
