"""Several hosts over ssh, and what happens to them; the ranks count steps instead of training."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.cluster.conftest import FOLDER, Lab, left_of
from tests.cluster.curves import check_curve, records, wait_for_step, went_on

pytestmark = pytest.mark.ranks


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


def test_the_death_of_a_host_costs_its_ranks_and_nothing_else(
    lab: Lab, hosts: Path, program: list[str]
) -> None:
    run_dir = hosts.parent / "r"
    bystander = subprocess.Popen(["ip", "netns", "exec", "node2", "sleep", "600"])
    argv = [*program, hosts, run_dir, "--steps", "300", "--checkpoints"]
    process = lab.start(argv)
    wait_for_step(run_dir, 5)
    since = time.time()
    lab.act("kill", "3")
    try:
        out, _ = process.communicate(timeout=120)
    finally:
        lab.act("serve", "3")
    assert process.returncode == 0, out
    assert "host node3 is lost" in out and "leaving out host node3" in out
    assert records(run_dir)[-1]["world_size"] == 6
    assert went_on(run_dir, since) < 90
    check_curve(run_dir, 300)
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    assert left_of(run_dir) == []


def test_a_host_that_was_cut_off_ends_its_ranks_and_writes_nothing(
    lab: Lab, hosts: Path, program: list[str]
) -> None:
    run_dir = hosts.parent / "r"
    process = lab.start([*program, hosts, run_dir, "--steps", "500", "--checkpoints"])
    wait_for_step(run_dir, 5)
    since = time.time()
    lab.act("cut", "4")
    try:
        deadline = time.monotonic() + 60
        while records(run_dir)[-1]["world_size"] != 6:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        gone = time.monotonic() + 30
        while ranks_of(lab, "node4", run_dir):
            assert time.monotonic() < gone, "the lease did not end the ranks of the cut-off host"
            time.sleep(0.2)
    finally:
        lab.act("mend", "4")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert "leaving out host node4" in out
    check_curve(run_dir, 500)
    assert went_on(run_dir, since) < 90
    assert left_of(run_dir) == []


def ranks_of(lab: Lab, host: str, run_dir: Path) -> list[str]:
    found = []
    for pid in lab.pids(host):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
        except OSError:
            continue
        found += [words] if "rank_script" in words and str(run_dir) in words else []
    return found


def test_a_stopped_rank_is_found_and_every_stack_is_printed(
    lab: Lab, hosts: Path, program: list[str]
) -> None:
    run_dir = hosts.parent / "r"
    argv = [*program, hosts, run_dir, "--steps", "40", "--checkpoints"]
    since = time.time()
    process = lab.start([*argv, "--accident", "5:10:stop"])
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert "the run hangs" in out
    assert "rank 5: stopped by a signal" in out
    assert "ranks 0-4, 6-7:" in out and "in wait" in out
    check_curve(run_dir, 40)
    assert went_on(run_dir, since) < 90
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
