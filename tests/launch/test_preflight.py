from typing import Any

import pytest

from tests.support.fakes import host_report
from train.commands.check import failures_of
from train.commands.requirements import Need
from train.hosts.hostfile import Host
from train.hosts.remote import Answer
from train.hosts.usage import DeviceUsage
from train.launch.preflight import crowding_of, differences, error_of, left_of

HOST = Host("a", 2)
NEED = Need(disk=10e9, memory=0.0)


def found(**changed: Any) -> list[str]:
    return failures_of(Answer(HOST, {}, time=100.5), host_report(**changed), NEED)


def test_a_host_that_is_well_has_no_failure() -> None:
    assert found() == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"shared": False}, "does not see the run folder"),
        ({"time": 90.0}, "clock is 10 s behind: run 'systemctl restart"),
        ({"disk": 1e9}, "1.0 GB of disk are free, but 10.0"),
        ({"shm": 64e6}, "mount -o remount,size=8G /dev/shm"),
        ({"files": 1024}, "ulimit -n 65536"),
        ({"infiniband": True, "locked": 65536}, "ulimit -l unlimited"),
        ({"device": "nvidia", "gpus": (0,)}, "write 'a slots=1'"),
        ({"error": "CUDA_VISIBLE_DEVICES must list"}, "CUDA_VISIBLE_DEVICES must list"),
    ],
)
def test_each_failure_says_what_mends_it(changed: dict[str, Any], words: str) -> None:
    (failure,) = found(**changed)
    assert words in failure and "\n" not in failure and "a: " in failure


def test_more_cpu_ranks_than_cores_are_told_and_no_failure() -> None:
    crowded = {"device": "cpu", "cores": HOST.slots - 1}
    assert found(**crowded) == []
    assert "more ranks than cores" in crowding_of(HOST, host_report(**crowded))
    assert crowding_of(HOST, host_report(device="cpu", cores=HOST.slots)) == ""


def test_a_host_goes_on_with_the_gpus_that_it_has_not_lost() -> None:
    eight = Host("a", 8)
    seven = host_report(device="nvidia", gpus=tuple(range(7)))
    assert error_of(eight, seven, "") != ""
    assert left_of(eight, seven) == Host("a", 7)
    assert error_of(left_of(eight, seven), seven, "") == ""
    assert left_of(Host("a", 4), seven) == Host("a", 4)
    assert left_of(eight, None) == eight
    assert left_of(eight, host_report(device="cpu")) == eight


def test_memory_and_busy_gpus_are_compared_with_what_the_run_needs() -> None:
    cards = [DeviceUsage("H100", used, 80e9, None, None) for used in (30e9, 1e6, 50e9)]
    report = host_report(device="nvidia", gpus=(0, 1, 2), usage=tuple(cards))
    used, short = failures_of(Answer(HOST, {}, time=100.0), report, Need(1e9, 70e9))
    assert "60.0 GB of memory are free, but 70.0 GB" in short
    assert "1 of its GPUs are in use (30 GB)" in used


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("root@a: Permission denied (publickey)", "run 'ssh-copy-id a'"),
        ("ssh: Could not resolve hostname a", "add a to /etc/hosts"),
        ("Host key verification failed.", "run 'ssh a' once"),
        ("bash: cd: /x: No such file or directory", "must be at the same paths"),
        ("", "try 'ssh a true'"),
    ],
)
def test_a_silent_host_is_told_with_the_command_that_helps(trouble: str, words: str) -> None:
    assert words in error_of(HOST, None, trouble)


def test_hosts_must_have_the_same_python_packages_code_and_kind() -> None:
    first = host_report()
    other = host_report(
        host="b", python="3.12.1", code="beef", device="amd", packages={"torch": "2.12.0"}
    )
    told = "\n".join(differences([first, other]))
    assert "b has Python 3.12.1, but a has 3.11.7" in told
    assert "'/v/python -m pip install torch==2.13.0'" in told
    assert "other code of anyrank (beef)" in told and "ranks of kind amd" in told
    assert list(differences([first, host_report(host="b")])) == []
