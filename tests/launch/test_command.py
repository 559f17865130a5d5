from pathlib import Path

import pytest

from train.errors import ConfigError
from train.launch.command import choose, environment, local, over_ssh
from train.launch.devices import Devices

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
    assert " ".join(argv) == "deepspeed --num_gpus 2 --master_port 4000 /r/train/main.py --lr 1"


def test_visible_devices_are_named_because_deepspeed_would_forget_them() -> None:
    seen = Devices("nvidia", (3, 1), restricted=True)
    argv = local(("deepspeed",), 1, seen, 4000, SCRIPT, ())
    assert argv[1:3] == ("--include", "localhost:3")


def test_several_hosts_are_given_their_meeting_place() -> None:
    argv = over_ssh(("deepspeed",), Path("/tmp/h"), ("10.0.0.1", 4000), SCRIPT, ("--seed", "1"))
    assert " ".join(argv) == (
        "deepspeed --hostfile /tmp/h --force_multi --master_addr 10.0.0.1 --master_port 4000 "
        "/r/train/main.py --seed 1"
    )


def test_cpu_ranks_get_one_thread_unless_told_otherwise() -> None:
    assert environment({}, CPU) == {"OMP_NUM_THREADS": "1"}
    assert environment({"OMP_NUM_THREADS": "4"}, CPU) == {"OMP_NUM_THREADS": "4"}
    assert environment({"A": "b"}, GPUS) == {"A": "b"}
