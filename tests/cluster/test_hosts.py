"""Several hosts over ssh, and what happens to them; the ranks count steps instead of training.

What real trainings show at least as well is in test_training.py: hosts that die or are cut off, a
rank that is stopped, memory that runs out.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cluster.conftest import FOLDER, Lab, left_of
from tests.cluster.curves import check_curve, wait_for_step


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text("".join(f"node{i} slots=2\n" for i in range(1, 5)))
    return path


def test_a_run_over_four_hosts_uses_every_slot(lab: Lab, hosts: Path, program: list[str]) -> None:
    run_dir = hosts.parent / "r"
    process = lab.start([*program, hosts, run_dir, "--steps", "3"], HF_SOMETHING="told")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    assert "rank 0 of 8 from step 0" in out
    assert "node1 x 2, node2 x 2, node3 x 2, node4 x 2" in out
    assert "HF_SOMETHING" in out and "told" not in out
    assert left_of(run_dir) == []


def test_the_first_failing_rank_of_all_hosts_is_told_first(
    lab: Lab, hosts: Path, program: list[str]
) -> None:
    run_dir = hosts.parent / "r"
    argv = [*program, hosts, run_dir, "--steps", "20", "--accident", "7:5:2"]
    process = lab.start(argv)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    said = out.index("rank 7 on node4 ended with exit code 2")
    assert "Connection reset" not in out[:said]
    assert "[error] exit 2 was asked for" in out[said:]


def test_memory_that_runs_out_is_planned_again_and_progress_keeps_the_run_alive(
    lab: Lab, hosts: Path, program: list[str]
) -> None:
    run_dir = hosts.parent / "r"
    accidents = [word for step in (4, 8, 12, 16, 20) for word in ("--accident", f"6:{step}:77")]
    argv = [*program, hosts, run_dir, "--steps", "24", "--checkpoints", *accidents]
    process = lab.start(argv)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert out.count("out of memory") == 5 and out.count("restart 1 of 3") == 5
    check_curve(run_dir, 24)


def test_nothing_is_left_when_the_supervisor_is_killed(
    lab: Lab, hosts: Path, program: list[str]
) -> None:
    run_dir = hosts.parent / "r"
    process = lab.start([*program, hosts, run_dir, "--steps", "900"])
    wait_for_step(run_dir, 3)
    os.kill(process.pid, 9)
    process.wait()
    assert left_of(run_dir) == []


def test_ranks_on_other_hosts_go_on_while_the_supervisor_is_stopped(
    lab: Lab, hosts: Path, program: list[str]
) -> None:
    run_dir = hosts.parent / "r"
    process = lab.start([*program, hosts, run_dir, "--steps", "150"], LEASE="4")
    wait_for_step(run_dir, 3)
    process.send_signal(signal.SIGSTOP)
    time.sleep(7)
    process.send_signal(signal.SIGCONT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "starting again" not in out, out
    check_curve(run_dir, 150)


def test_a_host_that_does_not_answer_at_the_start_is_the_users_to_mend(
    lab: Lab, hosts: Path, program: list[str]
) -> None:
    hosts.write_text(hosts.read_text() + "node9 slots=2\n")
    process = lab.start([*program, hosts, hosts.parent / "r", "--steps", "3"])
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "host node9: it does not answer" in out and "/etc/hosts" in out


def test_a_host_that_does_not_see_the_run_folder_is_refused_at_once(
    lab: Lab, hosts: Path, program: list[str]
) -> None:
    folder = hosts.parent / "shared"
    folder.mkdir()
    own = f"mount -t tmpfs none {folder} && {FOLDER}/hosts.sh serve 3"
    lab.act("kill", "3")
    subprocess.run(["unshare", "--mount", "sh", "-c", own], env=lab.env, check=True)
    try:
        process = lab.start([*program, hosts, folder / "r", "--steps", "3"])
        out, _ = process.communicate(timeout=60)
    finally:
        lab.act("kill", "3")
        lab.act("serve", "3")
    assert process.returncode != 0
    assert "host node3: it does not see the run folder: mount it there" in out
    assert "CPU ranks" not in out and not (folder / "r").exists()
