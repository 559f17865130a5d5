"""N processes that srun or mpirun has started are one run of N ranks, or are refused."""

import pytest

from train.config import World
from train.errors import ConfigError
from train.hosts import network
from train.hosts.tasks import own_device, refuse_copies, require_meeting_place, variables

SRUN = {
    "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "1", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_NUM_NODES": "3", "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_STEP_NODELIST": "127.0.0.1,b,c",
}  # fmt: skip
MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip


def test_the_tasks_of_srun_are_ranks_of_one_run() -> None:
    found = variables(SRUN)
    assert World.from_env(found) == World(rank=3, local_rank=1, size=5, local_size=2, node=1)
    assert found["MASTER_ADDR"] == "127.0.0.1"
    first = variables(SRUN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"})
    assert found["MASTER_PORT"] == first["MASTER_PORT"]
    other = variables(SRUN | {"SLURM_JOB_ID": "78"})
    assert found["MASTER_PORT"] != other["MASTER_PORT"]


def test_the_processes_of_mpirun_on_one_host_are_ranks_of_one_run() -> None:
    found = variables(MPI)
    assert World.from_env(found) == World(rank=1, local_rank=1, size=2, local_size=2)
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("127.0.0.1", "29500")
    pmi = {"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}
    assert World.from_env(variables(pmi)) == World(size=2, local_size=2)


def test_where_it_is_not_known_who_this_is_or_where_all_meet_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="mpirun has started 4 ranks on several hosts: set MAST"):
        variables(MPI | {"OMPI_COMM_WORLD_SIZE": "4"})
    told = variables(MPI | {"OMPI_COMM_WORLD_SIZE": "4", "MASTER_ADDR": "h"})
    assert (told["MASTER_ADDR"], told["CROSS_RANK"]) == ("h", "0")
    with pytest.raises(ConfigError, match="mpirun has started 2 copies of a run of one process"):
        variables({"PMI_RANK": "0", "PMI_SIZE": "2"})


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"},  # a batch script
        SRUN | {"SLURM_STEP_NUM_TASKS": "1"},
        SRUN | {"SLURM_PTY_PORT": "4000"},  # a shell
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_a_process_that_is_alone_stays_alone(env: dict[str, str]) -> None:
    assert variables(env) == {}
    refuse_copies(env)


def test_a_launchers_own_variables_count_first() -> None:
    assert variables(SRUN | {"RANK": "0"}) == {}


@pytest.mark.parametrize(
    "place",
    [
        {},
        {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"},
        {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "70000"},
        {"MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "29500"},
    ],
)
def test_variables_that_name_no_place_to_meet_at_are_refused(place: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="that is no place to meet at"):
        require_meeting_place(place)
    require_meeting_place({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"})


def test_a_task_that_sees_one_gpu_alone_has_that_one() -> None:
    """As `srun --gpus-per-task=1` has it; a launcher's ranks share what is visible."""
    assert own_device(SRUN, 3, 1) == own_device(MPI, 1, 1) == 0
    assert own_device(SRUN, 3, 4) == own_device({}, 3, 4) == 3
    assert own_device({}, 1, 1) is None and own_device(SRUN, 3, 2) is None


def test_several_copies_of_the_launcher_are_refused() -> None:
    with pytest.raises(ConfigError, match="srun has started 5 copies of the launcher"):
        refuse_copies(SRUN)
    pod = {"RANK": "1", "WORLD_SIZE": "3"}
    with pytest.raises(ConfigError, match="one of 3 copies of the launcher.*with both unset"):
        refuse_copies(pod)
    refuse_copies(pod | {"WORLD_SIZE": "1"})


def test_a_port_for_the_ranks_is_none_that_the_system_hands_out() -> None:
    """One of those may be taken between its choice and the moment when rank 0 listens on it."""
    assert all(12_000 <= network.free_port() < 30_000 for _ in range(20))
