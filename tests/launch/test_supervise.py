"""The supervisor over real agents and processes, with ranks that only count steps."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent


def start(
    run_dir: Path,
    ranks: int,
    *args: str,
    hosts: str = "",
    closed: tuple[int, ...] = (),
    before: tuple[str, ...] = (),
    **env: str,
) -> subprocess.Popen[str]:
    path = run_dir.parent / "hosts"
    path.write_text(hosts or f"localhost slots={ranks}\n")
    words = [*before, sys.executable, str(FOLDER / "supervised.py")]
    words += [str(path), str(run_dir), *args]
    if closed:
        words = ["bash", "-c", 'exec "$@" ' + " ".join(f"{n}>&-" for n in closed), "-", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, text=True, env=os.environ | env, **pipes)


def finish(process: subprocess.Popen[str], run_dir: Path) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    assert left_of(run_dir) == []
    return process.returncode, out, err


def processes_of(run_dir: Path) -> dict[int, str]:
    """Every other process whose command line names the run folder: its id, and that line."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(run_dir).encode() in words and path.parent.name != str(os.getpid()):
            found[int(path.parent.name)] = b" ".join(words).decode()
    return found


def ranks_of(run_dir: Path) -> list[int]:
    return [pid for pid, line in processes_of(run_dir).items() if "rank_script.py" in line]


def children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def left_of(run_dir: Path) -> list[str]:
    """What is left of a run after a moment to end."""
    deadline = time.monotonic() + 8
    while (found := processes_of(run_dir)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return list(found.values())


def wait_for_step(run_dir: Path, step: int, patience: float = 40) -> None:
    deadline = time.monotonic() + patience
    path = run_dir / "metrics.jsonl"
    while not (path.exists() and path.read_text().count("\n") >= step):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def steps(run_dir: Path) -> list[int]:
    return [int(n) for n in re.findall(r'"step": (\d+)', (run_dir / "metrics.jsonl").read_text())]


def test_a_run_that_goes_well_prints_and_returns_zero(tmp_path: Path) -> None:
    code, out, err = finish(start(tmp_path / "r", 3, "--steps", "2"), tmp_path / "r")
    assert (code, out) == (0, "rank 0 of 3 from step 0\n"), err
    assert "3 CPU ranks" in err


def test_a_killed_rank_takes_all_down_in_seconds_and_the_run_goes_on(tmp_path: Path) -> None:
    run_dir = tmp_path / "r"
    began = time.monotonic()
    process = start(run_dir, 3, "--steps", "6", "--checkpoints", "--accident", "2:4:kill")
    code, out, err = finish(process, run_dir)
    assert code == 0, err
    assert time.monotonic() - began < 20
    assert "rank 2 on localhost was killed" in err
    assert "starting again from step 3 (restart 1 of 3)" in err
    assert "rank 0 of 3 from step 3" in out
    assert steps(run_dir) == [1, 2, 3, 4, 5, 6]


def test_the_first_failing_ranks_error_comes_before_those_it_caused(tmp_path: Path) -> None:
    run_dir = tmp_path / "r"
    process = start(run_dir, 3, "--steps", "6", "--checkpoints", "--accident", "1:2:error")
    code, _, err = finish(process, run_dir)
    assert code == 0
    first = err.index("the accident of this test")
    assert "Connection reset" not in err[:first]


def test_kills_that_come_back_end_the_run_after_three_fruitless_restarts(tmp_path: Path) -> None:
    run_dir = tmp_path / "r"
    code, _, err = finish(start(run_dir, 2, "--steps", "6", "--accident", "1:2:kills"), run_dir)
    assert code == 1
    assert err.count("starting again") == 3
    assert "giving up: 3 restarts brought no progress" in err


def test_the_same_error_twice_at_the_same_step_is_no_fault_to_try_again(tmp_path: Path) -> None:
    run_dir = tmp_path / "r"
    words = ("--steps", "6", "--checkpoints", "--accident", "1:4:always")
    code, _, err = finish(start(run_dir, 2, *words), run_dir)
    assert code == 1
    assert err.count("starting again") == 1
    assert "giving up: after step 3 the same error came twice: RuntimeError: the accident" in err


@pytest.mark.parametrize("code", [2, 3])
def test_what_the_user_must_change_is_never_tried_again(tmp_path: Path, code: int) -> None:
    run_dir = tmp_path / "r"
    process = start(run_dir, 2, "--steps", "6", "--accident", f"1:2:{code}")
    found, _, err = finish(process, run_dir)
    assert found == code
    assert f"exit {code} was asked for" in err
    assert "starting again" not in err


def test_the_first_signal_saves_and_stops(tmp_path: Path) -> None:
    run_dir = tmp_path / "r"
    process = start(run_dir, 2, "--steps", "500", "--checkpoints")
    wait_for_step(run_dir, 2)
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process, run_dir)
    assert code == 75, err
    assert "SIGTERM: saving and stopping" in err


@pytest.mark.parametrize(
    ("number", "entered"),
    [
        (signal.SIGUSR1, True),
        (signal.SIGTERM, True),
        (signal.SIGINT, True),
        (signal.SIGUSR1, False),
    ],
)
def test_a_signal_while_the_data_is_opened_ends_in_seconds_with_75_and_one_sentence(
    tmp_path: Path, number: signal.Signals, entered: bool
) -> None:
    """As while tokenizing, for minutes; or before any rank has reported."""
    run_dir = tmp_path / "r"
    process = start(run_dir, 2, "--steps", "5", "--opening", "50")
    deadline = time.monotonic() + 20
    while not (ranks_of(run_dir)[1:] if entered else children(process.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(2.0 if entered else 0.0)  # for a beat to say so
    began = time.monotonic()
    process.send_signal(number)
    code, out, err = finish(process, run_dir)
    assert code == 75, err
    assert time.monotonic() - began < 20
    told = "[info] Stopped on request" if entered else "stopped before the ranks had begun"
    assert (out + err).count(told) == 1
    assert not run_dir.exists()


def test_without_a_loopback_interface_nothing_is_started_and_a_sentence_says_so(
    tmp_path: Path,
) -> None:
    if subprocess.run(["unshare", "-n", "true"], check=False).returncode:
        pytest.skip("a network of its own needs root")
    began = time.monotonic()
    process = start(tmp_path / "r", 2, "--steps", "3", before=("unshare", "-n"))
    code, _, err = finish(process, tmp_path / "r")
    assert code == 2
    assert (
        err.startswith("[error] host localhost: 127.0.0.1 cannot be reached")
        and "\n" not in err[:-1]
    )
    words = ["unshare", "-n", sys.executable, str(FOLDER.parents[1] / "train" / "main.py")]
    bare = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert bare.returncode == 2
    assert bare.stderr == (
        "[error] 127.0.0.1 cannot be reached (Network is unreachable): run 'ip link set lo up'\n"
    )
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_a_run_needs_no_standard_streams(tmp_path: Path, closed: tuple[int, ...]) -> None:
    process = start(tmp_path / "r", 2, "--steps", "3", closed=closed)
    code, _, err = finish(process, tmp_path / "r")
    assert code == 0, err
    assert steps(tmp_path / "r") == [1, 2, 3]


def test_what_stands_in_the_working_folder_is_never_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "random", "signal"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of the user is imported')")
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "r"
    process = start(run_dir, 2, "--steps", "2", "--tell", "PYTHONSAFEPATH")
    code, out, err = finish(process, run_dir)
    assert code == 0, err
    assert "of the user" not in out + err
    assert (run_dir / "told").read_text() == "1\n"  # for what ranks start in their turn


def test_a_console_that_goes_away_does_not_cost_the_save(tmp_path: Path) -> None:
    """As when Ctrl-C ends `tee` as well, or a login is lost."""
    process = start(tmp_path / "r", 2, "--steps", "400")
    wait_for_step(tmp_path / "r", 3)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 75
    assert left_of(tmp_path / "r") == []


def test_without_ssh_another_host_is_refused_in_a_sentence(tmp_path: Path) -> None:
    process = start(tmp_path / "r", 2, "--steps", "3", hosts="192.0.2.1 slots=2\n", PATH="")
    code, _, err = finish(process, tmp_path / "r")
    assert code != 0
    assert "host 192.0.2.1 cannot be reached, as 'ssh' cannot be started here" in err


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    run_dir = tmp_path / "r"
    process = start(run_dir, 2, "--steps", "500", "--accident", "0:3:stop")
    wait_for_step(run_dir, 2)
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process, run_dir)
    assert code == 130
    assert "ending at once" in err


@pytest.mark.parametrize("victim", ["supervisor", "agent"])
def test_no_rank_outlives_a_killed_supervisor_or_agent(tmp_path: Path, victim: str) -> None:
    run_dir = tmp_path / "r"
    process = start(run_dir, 2, "--steps", "500")
    wait_for_step(run_dir, 2)
    pid = process.pid
    if victim == "agent":
        pid = children(pid)[0]
    os.kill(pid, signal.SIGKILL)
    if victim == "agent":
        wait_for_step(run_dir, len(steps(run_dir)) + 2)  # started again by the supervisor
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert left_of(run_dir) == []


def test_ranks_that_end_without_finishing_are_no_success_and_start_again(tmp_path: Path) -> None:
    run_dir = tmp_path / "r"
    code, _, err = finish(start(run_dir, 1, "--steps", "6", "--accident", "0:6:0"), run_dir)
    assert "ended without finishing" in err and "DONE is missing" in err
    assert code == 0 and err.count("starting again") == 1
