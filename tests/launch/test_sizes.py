"""Which hosts another size takes, and when hosts that came back pay: pure functions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.fakes import host_report
from train.errors import ConfigError, HostfileError
from train.hosts.hostfile import Host, Hostfile
from train.launch.arguments import parse
from train.launch.gather import TooFewError, leave_out
from train.launch.job import LaunchJob, by_srun
from train.launch.output import Output
from train.launch.progress import newest_start
from train.launch.regrow import Regrowth
from train.launch.requests import ResizeRequest
from train.launch.resize import over

FOUR = Hostfile(tuple(Host(f"n{i}", 4) for i in range(1, 5)), path="four")


def job(run_dir: Path, ranks: int = 16) -> LaunchJob:
    return LaunchJob(FOUR, ranks, (), run_dir, False, {}, run_dir)


def test_hosts_in_use_come_first_and_the_last_is_taken_partly(tmp_path: Path) -> None:
    used = Hostfile((Host("n3", 4), Host("n2", 2)))
    asked = ResizeRequest(tmp_path / "r.json", 10, None)
    assert over(asked, job(tmp_path), used).hosts == (Host("n2", 4), Host("n3", 4), Host("n1", 2))
    few = ResizeRequest(tmp_path / "r.json", 3, None)
    assert over(few, job(tmp_path), used).hosts == (Host("n2", 3),)
    with pytest.raises(HostfileError, match="17 GPUs were asked for, but four has 16"):
        over(ResizeRequest(tmp_path / "r.json", 17, None), job(tmp_path), used)


def test_a_run_that_starts_over_does_so_again_until_its_old_checkpoints_are_set_aside(tmp_path):
    """A fault before that, as no memory for the model, made it go on from those."""
    never = replace(job(tmp_path), args=("--resume", "never"), before=1)
    for number in ("0001", "0002"):
        (tmp_path / "attempts" / number).mkdir(parents=True)
    (tmp_path / "attempts/0001/tokenized.json").write_text("{}")
    (tmp_path / "checkpoints/step_00000004").mkdir(parents=True)
    (tmp_path / "checkpoints/step_00000004/COMPLETE").write_text("")
    assert (never.resuming, never.reached, job(tmp_path).reached) == (never.args, 0, 4)
    assert never.first == never.args
    (tmp_path / "attempts/0002/tokenized.json").write_text("{}")
    assert never.resuming == (*never.args, "--resume", "auto")
    assert job(tmp_path).resuming == ("--resume", "auto") and job(tmp_path).first == ()


def test_a_slurm_job_that_is_queued_again_does_not_start_its_run_over_again(tmp_path: Path) -> None:
    """Each return of a preempted job with `--resume never` threw away what it had trained."""
    for number, slurm_job in (("0001", "7"), ("0002", "9"), ("0003", "9")):
        start = tmp_path / "attempts" / number
        start.mkdir(parents=True)
        variables = {"SLURM_JOB_ID": slurm_job}
        (start / "environment.json").write_text(json.dumps({"variables": variables}))
    (tmp_path / "attempts/0004").mkdir()  # killed before it told what it is
    (tmp_path / "attempts/0001/tokenized.json").write_text("{}")
    again = {"SLURM_JOB_ID": "9", "SLURM_RESTART_COUNT": "1"}
    assert newest_start(tmp_path, {"SLURM_JOB_ID": "9"}) == 4
    assert newest_start(tmp_path, again) == 1
    assert newest_start(tmp_path, again | {"SLURM_JOB_ID": "8"}) == 4  # another job's starts
    never = replace(job(tmp_path), args=("--resume", "never"), before=1)
    assert never.first == never.args  # its starts have not come to training
    (tmp_path / "attempts/0003/tokenized.json").write_text("{}")
    assert never.first == (*never.args, "--resume", "auto")


def test_a_size_that_pinned_degrees_do_not_divide_is_refused(tmp_path: Path) -> None:
    pinned = replace(job(tmp_path), unit=4)
    assert over(ResizeRequest(tmp_path / "r.json", 8, None), pinned, FOUR).slots == 8
    with pytest.raises(HostfileError, match="take 4 GPUs together, and 6 is no multiple of that"):
        over(ResizeRequest(tmp_path / "r.json", 6, None), pinned, FOUR)


def test_after_a_loss_pinned_degrees_leave_gpus_idle_rather_than_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = [host_report(gpus=(0, 1, 2, 3)[:n], device="nvidia") for n in (3, 4)]
    hosts = Hostfile((Host("a", 4), Host("b", 4)))
    links = [
        SimpleNamespace(name=n, report=r, error=str) for n, r in zip("ab", reports, strict=True)
    ]
    output = Output(None)
    assert leave_out(hosts, links, 8, output).slots == 7
    assert leave_out(hosts, links, 8, output, unit=2).slots == 6
    assert (
        "GPUs that stay idle: 1, since the pinned degrees take 2 together"
        in capsys.readouterr().err
    )
    with pytest.raises(TooFewError):
        leave_out(hosts, links, 8, output, least=7, unit=2)
    with pytest.raises(HostfileError, match="7 GPUs are left, but the pinned degrees take 8"):
        leave_out(hosts, links, 8, output, unit=8)


@pytest.mark.parametrize("asked", [(17, None), (2, FOUR)])
def test_beyond_a_slurm_job_the_sentence_says_what_to_submit(
    tmp_path: Path, asked: tuple[int, Hostfile | None]
) -> None:
    request = ResizeRequest(tmp_path / "r.json", *asked)
    inside = by_srun(job(tmp_path))
    assert over(ResizeRequest(tmp_path / "r.json", 16, None), inside, FOUR).slots == 16
    with pytest.raises(HostfileError, match="has 16 GPUs and no other hosts.*submit 'sbatch "):
        over(request, inside, FOUR)


def test_two_bounds_are_read_and_a_wrong_order_is_one_sentence() -> None:
    asked = parse(["8-32", "--lr", "1"])
    assert (asked.least, asked.gpus, asked.args) == (8, 32, ("--lr", "1"))
    assert parse(["--hostfile", "h", "2-2"]).least == 2
    with pytest.raises(ConfigError, match="32-8 has its bounds in the wrong order: write 8-32"):
        parse(["32-8"])
    with pytest.raises(ConfigError, match="at least 1, but is 0"):
        parse(["0-8"])


def test_a_host_is_taken_back_where_the_steps_that_remain_gain_more_than_a_pause(
    tmp_path: Path,
) -> None:
    """8 of 16 GPUs: with all of them the steps that remain would take half as long."""
    log = tmp_path / "attempts" / "0001" / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("[info] [6/8] Training 1000 steps...\n")
    half = Hostfile((Host("n1", 4), Host("n2", 4)))
    looking = Regrowth(job(tmp_path), half, Output(None))
    assert looking.wanted == 16 and [host.name for host in looking.lacking.hosts] == ["n3", "n4"]
    assert looking._pays(16), "nothing is known yet"
    for last, pays in ((700, True), (980, False)):
        line = {"step": last, "seconds": 1.0, "time": 1000.0}
        (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        assert looking._pays(16) is pays
