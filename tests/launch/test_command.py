from pathlib import Path

import pytest

from train.errors import ConfigError
from train.hosts.devices import Devices
from train.launch.command import choose, environment, include, local, one_of_many

CPU = Devices("cpu")
GPUS = Devices("nvidia", (0, 1, 2, 3))
SCRIPT = Path("/r/train/main.py")


def test_cpu_ranks_may_be_any_number_and_are_two_at_most_by_default() -> None:
    assert [choose(None, CPU, cores) for cores in (1, 2, 64)] == [1, 2, 2]
    assert choose(32, CPU, 2) == 32


def test_gpus_are_all_taken_by_default_and_never_more_than_there_are() -> None:
    assert choose(None, GPUS, 64) == 4
    assert choose(3, GPUS, 64) == 3
    with pytest.raises(ConfigError, match="5 GPUs were asked for, but this machine has 4"):
        choose(5, GPUS, 64)


def test_one_machine_needs_no_hostfile() -> None:
    argv = local(("deepspeed",), 2, GPUS, 4000, SCRIPT, ("--lr", "1"))
    assert " ".join(argv) == (
        "deepspeed --log_level critical --num_gpus 2 --master_port 4000 /r/train/main.py --lr 1"
    )


def test_visible_devices_are_named_because_deepspeed_would_forget_them() -> None:
    seen = Devices("nvidia", (3, 1), restricted=True)
    argv = local(("deepspeed",), 1, seen, 4000, SCRIPT, ())
    assert argv[3:5] == ("--include", "localhost:3")


def test_each_host_of_many_starts_its_own_ranks_without_ssh() -> None:
    argv = one_of_many(
        ("deepspeed",), 1, Path("/run/hostfile"), "", ("10.0.0.1", 4000), SCRIPT, ("--seed", "1")
    )
    assert " ".join(argv) == (
        "deepspeed --log_level critical --no_ssh --node_rank 1 --hostfile /run/hostfile "
        "--master_addr 10.0.0.1 --master_port 4000 /r/train/main.py --seed 1"
    )


def test_devices_are_only_named_where_they_are_not_the_first() -> None:
    assert include([("a", [0, 1]), ("b", [0])]) == ""
    assert include([("a", [0, 1]), ("b", [2, 3])]) == "a:0,1@b:2,3"


def test_cpu_ranks_get_one_thread_unless_told_otherwise() -> None:
    assert environment({}, "cpu")["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in environment({"OMP_NUM_THREADS": "4"}, "cpu")
    assert environment({"A": "b"}, "nvidia") == {}
