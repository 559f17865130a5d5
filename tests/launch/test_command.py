import pytest

from train.errors import ConfigError
from train.hosts.devices import Devices
from train.launch.command import choose, environment

CPU = Devices("cpu")
GPUS = Devices("nvidia", (0, 1, 2, 3))


def test_cpu_ranks_may_be_any_number_and_are_two_at_most_by_default() -> None:
    assert [choose(None, CPU, cores) for cores in (1, 2, 64)] == [1, 2, 2]
    assert choose(32, CPU, 2) == 32


def test_gpus_are_all_taken_by_default_and_never_more_than_there_are() -> None:
    assert choose(None, GPUS, 64) == 4
    assert choose(3, GPUS, 64) == 3
    with pytest.raises(ConfigError, match="5 GPUs were asked for, but this machine has 4"):
        choose(5, GPUS, 64)


def test_cpu_ranks_get_one_thread_unless_told_otherwise() -> None:
    assert environment({}, "cpu")["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in environment({"OMP_NUM_THREADS": "4"}, "cpu")
    assert environment({"A": "b"}, "nvidia") == {"PYTHONSAFEPATH": "1"}
