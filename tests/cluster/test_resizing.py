"""Runs whose hosts change meanwhile: cut off, returned, added, refused; a killed supervisor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.launches import difference
from tests.cluster.conftest import FOLDER, Lab, finish, left_of
from tests.cluster.curves import check_curve, records, wait_for_step
from train.commands.resize import follow
from train.launch import requests
from train.output.metrics import PHASES, read_metrics

WORDS = "--batch-size 96 --block-size 96 --save-step 10 --eval-step 10 --lr 1e-4 --precision fp32 "
WORDS += "--log-interval 20 --ds-config ds_configs/auto.json"
HASTY = [sys.executable, "-P", FOLDER / "hasty.py"]
MORE = 100_000  # steps: more than are made
MOMENTS = {"loading": ("0", 3), "saving": ("40", 2), "evaluating": ("80", 4)}


def resize(lab: Lab, run_dir: Path, *words: str | Path) -> subprocess.Popen[str]:
    return lab.start([sys.executable, "-P", "-m", "train.cli", "resize", run_dir, *words])


def said(asking: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = asking.communicate(timeout=200)
    return asking.returncode, out


@pytest.fixture
def hosts(tmp_path: Path) -> dict[int, Path]:
    """Hostfiles of so many hosts of two ranks each."""
    found = {count: tmp_path / f"hosts{count}" for count in (2, 3, 4)}
    for count, path in found.items():
        path.write_text("".join(f"node{i} slots=2\n" for i in range(1, count + 1)))
    return found


def cut_off_and_taken_back(lab: Lab, run_dir: Path, kept: int) -> None:
    """Take node2 off the network until the run has gone on without it, and wait for its return.

    A checkpoint is made every `kept` steps: the last ones are then its own.
    """
    made = records(run_dir)[-1]["step"]
    lab.act("cut", "2")
    try:
        wait_for_step(run_dir, made + 1, 200, ranks=2)
    finally:
        lab.act("mend", "2")
    wait_for_step(run_dir, made + 2, 200, ranks=4)
    wait_for_step(run_dir, records(run_dir)[-1]["step"] + kept, ranks=4)


def kill_amid_a_resize(
    lab: Lab, run_dir: Path, process: subprocess.Popen[str], *words: str | Path
) -> str:
    """Kill the supervisor once the ranks of another size are being made ready; return its words."""
    asking = resize(lab, run_dir, *words)
    assert asking.stdout is not None
    assert "its ranks are made ready" in asking.stdout.readline()
    process.kill()
    out, _ = process.communicate(timeout=60)
    code, told = said(asking)
    assert code == 2 and "has ended without an answer" in told
    assert left_of(run_dir, 30) == []
    return out


def sizes(run_dir: Path) -> list[int]:
    """The numbers of ranks in their order, repetitions left out."""
    found = [record["world_size"] for record in records(run_dir)]
    return [n for i, n in enumerate(found) if i == 0 or found[i - 1] != n]


def test_a_run_over_hosts_that_change_loses_and_repeats_no_step(
    lab: Lab, hosts: dict[int, Path], program: list[str], tmp_path: Path
) -> None:
    """At every moment that matters; the ranks only count."""
    run_dir = tmp_path / "run"
    busy = [word for what, (step, _) in MOMENTS.items() for word in ("--busy", f"{what}:{step}")]
    line = [*program, hosts[2], run_dir, "--checkpoints"]
    process = lab.start([*line, "--steps", str(MORE), *busy], LEASE="4", RANKS="4")
    try:
        for what, (_, size) in MOMENTS.items():
            while not (run_dir / f"busy-{what}").exists():
                assert process.poll() is None
            asked = requests.ask(run_dir, size, None)
            assert follow(run_dir, asked) == 0
            requests.forget(asked)
        for _ in range(2):
            cut_off_and_taken_back(lab, run_dir, 1)
        added = said(resize(lab, run_dir, "6", "--hostfile", hosts[3]))
        lab.act("kill", "4")
        refused = said(resize(lab, run_dir, "8", "--hostfile", hosts[4]))
        both = [resize(lab, run_dir, n) for n in ("5", "3")]
        twice = [said(asking) for asking in both]
        out = kill_amid_a_resize(lab, run_dir, process, "4")
    finally:
        lab.act("kill", "4")
        lab.act("serve", "4")
        process.kill()
    last = records(run_dir)[-1]["step"]
    again = lab.start([*line, "--steps", str(last + 40)], RANKS="4")
    wait_for_step(run_dir, last + 1)
    asked = []
    while again.poll() is None:
        asked.append(said(resize(lab, run_dir, str(2 + len(asked) % 2))))
    assert "starting again" not in finish(again)
    check_curve(run_dir, last + 40)
    assert added[0] == 0 and "the run goes on with 6 GPUs" in added[1]
    assert refused[0] == 2 and "not resized: host node4: it does not answer" in refused[1]
    assert [code for code, _ in twice] == [0, 0]
    assert out.count("host node2 is good again: it is taken back at the next checkpoint") == 2
    assert out.count("host node2 is lost") == 2
    assert left_of(run_dir) == []


def test_a_host_that_is_cut_off_is_taken_back_and_the_curve_is_that_of_one_rank(
    lab: Lab,
    hosts: dict[int, Path],
    tiny: Path,
    ragged: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A real training: twice, then a third host is added, and the supervisor killed in a resize."""
    run_dir, whole = tmp_path / "run", tmp_path / "whole"
    named = ["--model-name-or-path", tiny, "--dataset-name-or-path", ragged]
    words = ["--run-dir", run_dir, *named, *WORDS.split()]
    process = lab.start([*HASTY, "4", "--hostfile", hosts[2], *words, "--max-steps", str(MORE)])
    try:
        wait_for_step(run_dir, 12, 200)
        for _ in range(2):
            cut_off_and_taken_back(lab, run_dir, 10)
        added = said(resize(lab, run_dir, "6", "--hostfile", hosts[3]))
        wait_for_step(run_dir, records(run_dir)[-1]["step"] + 10, ranks=6)
        out = kill_amid_a_resize(lab, run_dir, process, "3")
    finally:
        process.kill()
    last = records(run_dir)[-1]["step"]
    again = ["3", "--hostfile", hosts[2], "--run-dir", run_dir, "--max-steps", str(last + 2)]
    finish(lab.start([*HASTY, *again]))
    assert out.count("host node2 is good again: it is taken back at the next checkpoint") == 2
    assert added[0] == 0 and "the run goes on with 6 GPUs" in added[1]
    assert left_of(run_dir) == []
    check_curve(run_dir, last + 2)
    assert sizes(run_dir)[-3:] == [4, 6, 3] and sizes(run_dir).count(4) == 3
    words = ["--run-dir", whole, *named, *WORDS.split(), "--max-steps", str(last + 2)]
    finish(lab.start([*HASTY, "1", *words]))
    found = difference(run_dir, whole)
    with capsys.disabled():
        print(f"\n\n4, 2, 4, 2, 4, 6, 3 ranks over {last + 2} steps, each once: {found:.1e}")
        for line in read_metrics(run_dir / "metrics.jsonl").restarts:
            parts = ", ".join(f"{name} {line[name] or 0:.1f}" for name in PHASES)
            print(f"{line['world_size']} ranks from step {line['step']}: {parts}")
    assert found <= 1e-6
