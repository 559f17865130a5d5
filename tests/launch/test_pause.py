"""A supervisor that is stopped, and a machine that slept: the run goes on, no step is repeated."""

import os
import queue
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.launch.test_supervise import (
    FOLDER,
    children,
    finish,
    processes_of,
    ranks_of,
    start,
    steps,
    wait_for_step,
)
from train.commands.resize import follow
from train.hosts.hostfile import Host, Hostfile
from train.launch import heartbeat, requests
from train.launch.attempt import Attempt
from train.launch.gather import Crew
from train.launch.job import LaunchJob
from train.launch.output import Output
from train.launch.pause import AwakeClock

LEASE = 4.0  # seconds: longer than what AwakeClock takes for a pause
STEPS = 200  # 10 s of them


@pytest.mark.parametrize("number", [signal.SIGTSTP, signal.SIGSTOP])
def test_the_ranks_go_on_while_their_supervisor_is_stopped_for_longer_than_a_lease(
    tmp_path: Path, number: signal.Signals
) -> None:
    run_dir = tmp_path / "r"
    process = start(run_dir, 2, "--steps", str(STEPS), LEASE=str(LEASE))
    wait_for_step(run_dir, 2)
    process.send_signal(number)
    time.sleep(1)
    assert heartbeat.state(process.pid) == "T"
    before = len(steps(run_dir))
    time.sleep(LEASE + 2)
    assert len(steps(run_dir)) > before
    process.send_signal(signal.SIGCONT)
    code, _, err = finish(process, run_dir)
    assert code == 0, err
    assert steps(run_dir) == list(range(1, STEPS + 1))
    assert "starting again" not in err
    assert ("the ranks go on, and are shown again after 'fg'" in err) == (number == signal.SIGTSTP)


def test_a_machine_that_slept_for_longer_than_a_lease_goes_on_where_it_was(tmp_path: Path) -> None:
    """As when a laptop is closed: all of the run's processes stand still."""
    run_dir = tmp_path / "r"
    process = start(run_dir, 2, "--steps", "60", LEASE=str(LEASE))
    wait_for_step(run_dir, 2)
    everything = [process.pid, *children(process.pid), *ranks_of(run_dir)]
    for pid in everything:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(LEASE + 2)
    for pid in everything:
        os.kill(pid, signal.SIGCONT)
    code, _, err = finish(process, run_dir)
    assert code == 0, err
    assert steps(run_dir) == list(range(1, 61))
    assert "starting again" not in err and "hang" not in err


def test_a_supervisor_that_is_cut_off_costs_the_ranks_after_a_lease(tmp_path: Path) -> None:
    """As when a cable is pulled: neither the supervisor nor what beats for it is heard."""
    run_dir = tmp_path / "r"
    process = start(run_dir, 2, "--steps", "4000", LEASE=str(LEASE))
    wait_for_step(run_dir, 2)
    agent, *others = children(process.pid)
    for pid in (process.pid, *others):
        os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + LEASE + 20
    while (left := ranks_of(run_dir)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    for pid in (process.pid, *others):
        os.kill(pid, signal.SIGKILL)
    process.wait(10)
    deadline = time.monotonic() + 10
    while heartbeat.state(agent) != "-" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(run_dir) == {}


def test_a_killed_supervisor_takes_along_what_beats_for_it(tmp_path: Path) -> None:
    run_dir = tmp_path / "r"
    process = start(run_dir, 1, "--steps", "4000")
    wait_for_step(run_dir, 2)
    started = children(process.pid)
    assert len(started) == 2  # an agent, and the beats
    process.kill()
    process.wait(10)
    deadline = time.monotonic() + 10
    while any(heartbeat.state(pid) != "-" for pid in started) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [heartbeat.state(pid) for pid in started] == ["-", "-"]


def test_a_clock_that_nobody_could_ask_has_not_gone_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "clock_gettime", lambda kind: now[0])
    clock = AwakeClock()
    now[0] += 3
    assert clock() == 3.0 and clock.woke == 0.0
    now[0] += 60
    assert clock() == 3.0 and clock.woke == pytest.approx(time.time(), abs=5)
    now[0] += 1
    assert clock() == 4.0


@pytest.mark.parametrize("slept", [False, True])
def test_ranks_that_stood_still_during_a_pause_do_not_hang(tmp_path: Path, slept: bool) -> None:
    step = f'{{"step": 1, "seconds": 0.1, "time": {time.time() - 60}}}'
    (tmp_path / "metrics.jsonl").write_text(step)
    hosts = Hostfile((Host("localhost", 1),))
    job = LaunchJob(hosts, 1, (), tmp_path, False, {}, tmp_path)
    crew = Crew(hosts, (), queue.Queue(), (), None)
    attempt = Attempt(crew, job, Output(None), [], lambda: False)
    attempt.began = time.time() - 100
    attempt.seen.idle["a"] = 60.0
    attempt.clock.woke = time.time() - 1 if slept else 0.0
    attempt.look_for_hang()
    assert attempt.seen.hung is not slept


def test_a_host_that_is_silent_is_lost_also_where_another_hosts_rank_dies_of_it(
    tmp_path: Path,
) -> None:
    hosts = Hostfile((Host("near", 1), Host("far", 1)))
    job = LaunchJob(hosts, 2, (), tmp_path, False, {}, tmp_path, lease=0.2)
    near, far = (
        SimpleNamespace(name=host.name, closed=False, error=str, send=lambda *_, **__: None)
        for host in hosts.hosts
    )
    crew = Crew(hosts, (near, far), queue.Queue(), (), "near")
    attempt = Attempt(crew, job, Output(None), [], lambda: False)
    told = {"rank": 0, "code": 1, "time": None, "tail": "", "error": "Connection reset by peer"}
    crew.events.put((near, {"kind": "death", **told}))
    crew.events.put((near, {"kind": "exit", "code": 1}))
    attempt.follow()
    assert attempt.result().lost == ("far",)


def test_a_run_whose_console_takes_nothing_is_looked_after_all_the_same(tmp_path: Path) -> None:
    """As behind a pager, Ctrl-S or a line that is down: a killed rank, and another size."""
    run_dir, (outer, inner) = tmp_path / "r", os.pipe()
    os.set_blocking(inner, False)
    with suppress(BlockingIOError):
        while True:
            os.write(inner, b" " * 4096)
    os.set_blocking(inner, True)
    words = ["--steps", "150", "--checkpoints", "--accident", "1:4:kill"]
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    line = [sys.executable, str(FOLDER / "supervised.py"), str(tmp_path / "hosts"), str(run_dir)]
    process = subprocess.Popen([*line, *words], stdout=inner, stderr=inner)
    os.close(inner)
    wait_for_step(run_dir, 20)
    asked = requests.ask(run_dir, 1, None)
    assert follow(run_dir, asked) == 0
    with os.fdopen(outer, errors="replace") as shown:
        out = shown.read()
    assert process.wait(30) == 0
    assert "rank 1 on localhost was killed" in out and "resized to 1 GPUs" in out
    assert steps(run_dir) == list(range(1, 151))
