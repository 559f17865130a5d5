"""Another size for a run that runs: real supervisor, agents and command, ranks that only count."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launch.test_supervise import finish, ranks_of, start, steps, wait_for_step
from train.commands.resize import follow
from train.hosts.hostfile import parse
from train.launch import requests

ROOT = Path(__file__).resolve().parents[2]
HERE = "localhost slots=4\n"


def resize(run_dir: Path, *words: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "train.cli", "resize", str(run_dir), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, cwd=ROOT, text=True, **pipes)


def until(condition: Callable[[], object], patience: float = 40) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def said(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = process.communicate(timeout=90)
    return process.returncode, out + err


def sizes(run_dir: Path) -> list[int]:
    """The numbers of ranks in their order, repetitions left out."""
    found = re.findall(r'"world_size": (\d+)', (run_dir / "metrics.jsonl").read_text())
    return [int(n) for i, n in enumerate(found) if i == 0 or found[i - 1] != n]


def test_a_run_is_resized_up_and_down_and_no_step_is_lost_or_repeated(tmp_path: Path) -> None:
    run_dir = tmp_path / "r"
    process = start(run_dir, 4, "--steps", "400", "--checkpoints", hosts=HERE, RANKS="2")
    wait_for_step(run_dir, 2)
    code, told = said(resize(run_dir, "2"))
    assert (code, told) == (0, "the run has 2 GPUs already: nothing to do\n")
    for n in "4", "1":
        code, told = said(resize(run_dir, n))
        assert code == 0, told
        assert re.search(rf"goes on with {n} GPUs; the pause took [\d.]+ s\n$", told)
    code, told = said(resize(run_dir, "9"))
    assert code == 2
    assert "not resized: 9 GPUs were asked for, but" in told and "has 4 (1 hosts)" in told
    code, _, err = finish(process, run_dir)
    assert code == 0, err
    assert steps(run_dir) == list(range(1, 401))
    assert sizes(run_dir) == [2, 4, 1]
    assert "not resized: 9 GPUs" in err and "starting again" not in err
    assert not (run_dir / "resize").exists()


def test_a_host_that_fails_its_check_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    run_dir = tmp_path / "r"
    process = start(run_dir, 2, "--steps", "300", "--checkpoints")
    wait_for_step(run_dir, 2)
    more = tmp_path / "more"
    more.write_text("localhost slots=2\n192.0.2.1 slots=2\n")
    code, told = said(resize(run_dir, "4", "--hostfile", str(more)))
    assert code == 2
    assert "not resized: host 192.0.2.1" in told and "the run goes on as it is" in told
    code, _, err = finish(process, run_dir)
    assert code == 0, err
    assert "not resized: host 192.0.2.1" in err
    assert (steps(run_dir), sizes(run_dir)) == (list(range(1, 301)), [2])


@pytest.mark.parametrize(
    ("accident", "size", "why"),
    [
        ("--unready", "4", "rank 3 on localhost ended: unready, as this test wants; the run"),
        ("--unfit", "3", "3 GPUs cannot do it"),
    ],
)
def test_ranks_that_fail_before_their_first_step_leave_the_run_at_its_size(
    tmp_path: Path, accident: str, size: str, why: str
) -> None:
    """While they wait for their turn, or when the plan does not fit."""
    run_dir = tmp_path / "r"
    words = ("--steps", "300", "--checkpoints", accident, "3")
    process = start(run_dir, 4, *words, hosts=HERE, RANKS="2")
    wait_for_step(run_dir, 2)
    code, told = said(resize(run_dir, size))
    assert code == 2 and f"not resized: {why}" in told
    code, _, err = finish(process, run_dir)
    assert code == 0, err
    assert (steps(run_dir), sizes(run_dir)) == (list(range(1, 301)), [2])


def test_what_stands_in_the_folder_can_be_no_option_of_ssh(tmp_path: Path) -> None:
    hosts = parse("node1 slots=2\nme@node2 slots=4\n", "mine")
    asked = requests.ask(tmp_path, 3, hosts)
    found = requests.oldest(tmp_path)
    assert found is not None and (found.ranks, found.hosts) == (3, hosts)
    bad = {"ranks": 3, "hosts": "-oProxyCommand=touch slots=2\n", "path": "mine"}
    for text in (json.dumps(bad), "{", "[]", '{"ranks": "x", "hosts": null, "path": ""}'):
        asked.path.write_text(text)
        assert requests.oldest(tmp_path) is None and not asked.path.exists()
    asked.answer("nobody waits any more", 0)
    assert requests.answers(asked) == (("nobody waits any more", 0),)
    requests.forget(asked)
    asked.answer("nor now", 0)
    assert list(tmp_path.iterdir()) == []


def test_a_size_that_is_asked_for_while_loading_saving_and_evaluating_is_taken(
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "r"
    moments = {"loading": ("0", "3"), "saving": ("30", "1"), "evaluating": ("60", "2")}
    busy = [word for what, (step, _) in moments.items() for word in ("--busy", f"{what}:{step}")]
    process = start(run_dir, 4, "--steps", "400", "--checkpoints", *busy, hosts=HERE, RANKS="2")
    for what, (_, size) in moments.items():
        until((run_dir / f"busy-{what}").exists)
        asked = requests.ask(run_dir, int(size), None)  # at once, as no command could
        assert follow(run_dir, asked) == 0
        requests.forget(asked)
    code, _, err = finish(process, run_dir)
    assert code == 0, err
    assert steps(run_dir) == list(range(1, 401))
    assert sizes(run_dir)[-3:] == [3, 1, 2]  # before them 2, if loading was over before 3 waited
    assert "starting again" not in err and err.count("resized to ") == 3


def test_two_requests_at_once_are_carried_out_one_after_the_other(tmp_path: Path) -> None:
    run_dir = tmp_path / "r"
    process = start(run_dir, 4, "--steps", "400", "--checkpoints", hosts=HERE, RANKS="2")
    wait_for_step(run_dir, 2)
    first = resize(run_dir, "3")
    until(lambda: list(run_dir.glob("resize/*.json")))
    second = resize(run_dir, "1")
    assert said(first)[0] == said(second)[0] == 0
    code, _, err = finish(process, run_dir)
    assert code == 0, err
    assert (steps(run_dir), sizes(run_dir)) == (list(range(1, 401)), [2, 3, 1])


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_stop_or_a_killed_supervisor_amid_a_resize_loses_nothing(
    tmp_path: Path, how: str
) -> None:
    run_dir = tmp_path / "r"
    words = ("--steps", "300", "--checkpoints", "--opening", "2")
    process = start(run_dir, 4, *words, hosts=HERE, RANKS="2")
    wait_for_step(run_dir, 2)
    asking = resize(run_dir, "3")
    until(lambda: len(ranks_of(run_dir)) > 3)  # the next ones open the data
    if how == "stop":
        (run_dir / "STOP").touch()
    else:
        process.kill()
    code, _, err = finish(process, run_dir)
    assert code == (75 if how == "stop" else -9), err
    code, told = said(asking)
    assert code != 0 and "has ended" in told
    again = start(run_dir, 4, *words, hosts=HERE, RANKS="3")
    code, _, err = finish(again, run_dir)
    assert code == 0, err
    assert steps(run_dir) == list(range(1, 301))
    assert sizes(run_dir) == [2, 3]


def test_what_does_not_run_is_not_resized_and_the_sentence_says_what_does(tmp_path: Path) -> None:
    run_dir = tmp_path / "r"
    code, told = said(resize(run_dir, "3"))
    assert code == 2 and "is no run's folder" in told
    (run_dir / "attempts").mkdir(parents=True)
    code, told = said(resize(run_dir, "3"))
    assert code == 2 and f"./launch.sh 3 --run-dir {run_dir}' goes on with 3 GPUs" in told
    assert said(resize(run_dir, "0"))[1].startswith("[error] anyrank resize: N must be a whole")


def test_resizes_at_any_moment_up_to_the_end_lose_and_repeat_no_step(tmp_path: Path) -> None:
    """While loading, training and after the last step: one request follows the other."""
    run_dir = tmp_path / "r"
    words = ("--steps", "160", "--checkpoints")
    process = start(run_dir, 4, *words, hosts=HERE, RANKS="2")
    until((run_dir / "OWNER").exists)
    told = []
    while process.poll() is None and all(code == 0 for code, _ in told):
        told.append(said(resize(run_dir, str(1 + len(told) % 3))))
    done = (run_dir / "DONE").exists()
    code, _, err = finish(process, run_dir)
    assert code == 0, err
    assert steps(run_dir) == list(range(1, 161))
    assert "starting again" not in err and len(sizes(run_dir)) > 2
    assert told[-1][0] == 0 or done, told
