import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.errors import HostfileError
from train.hosts.hostfile import Host, Hostfile
from train.hosts.slurm import expand, hosts, slots_per_node
from train.launch.job import LaunchJob, by_srun


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a", "a"),
        ("a1,b-2", "a1 b-2"),
        ("n[1-3,7]", "n1 n2 n3 n7"),
        ("n[08-11]", "n08 n09 n10 n11"),
        ("r[1-2]n[0-1],x", "r1n0 r1n1 r2n0 r2n1 x"),
        ("n[1]-ib.lab", "n1-ib.lab"),
    ],
)
def test_node_lists_are_expanded_in_order(text: str, names: str) -> None:
    assert expand(text) == tuple(names.split())


@pytest.mark.parametrize(
    "text",
    ["", ",", "a,", "a,,b", "n[1-3", "n1]", "n[]", "n[3-1]", "n[a-b]", "n[1-9999999]", "-x",
     "n[1-2],n1", "a b", "$(x)", "n[1-2][", "n[1;2]", "é", "n[1-99999][1-99999]"],
)  # fmt: skip
def test_what_is_no_node_list_is_refused(text: str) -> None:
    with pytest.raises(HostfileError, match=r"^SLURM_JOB_NODELIST:1: "):
        expand(text)


pieces = st.sampled_from(
    ["n", "a1", "[1-3]", "[08-10,12]", "[", "]", ",", "-", "[5]", " ", "$", ";"]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(pieces, max_size=6).map("".join))
def test_no_text_crashes_the_reader_or_yields_a_name_that_is_none(text: str) -> None:
    try:
        names = expand(text)
    except HostfileError:
        return
    assert all(re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII) for name in names)
    assert len(set(names)) == len(names) > 0


def test_a_job_of_several_nodes_is_its_node_list_and_of_one_node_this_machine() -> None:
    env = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_GPUS_ON_NODE": "4"}
    found = hosts(env)
    assert found is not None and found.hosts == (Host("n1", 4), Host("n2", 4))
    alone = {**env, "SLURM_JOB_NODELIST": "n1"}
    inside, outside = hosts({**alone, "SLURMD_NODENAME": "n1"}), hosts(alone)
    assert inside is not None and inside.hosts == (Host("localhost", 4),)
    assert outside is not None and outside.hosts == (Host("n1", 4),)  # salloc's shell, elsewhere
    assert hosts({}) is None


def test_the_number_of_gpus_is_read_with_or_without_their_kind() -> None:
    assert slots_per_node({"SLURM_GPUS_PER_NODE": "a100:8"}) == 8
    assert slots_per_node({"SLURM_NTASKS_PER_NODE": "2"}) == 2
    assert slots_per_node({}) == 1
    with pytest.raises(HostfileError, match="names no number"):
        slots_per_node({"SLURM_GPUS_PER_NODE": "many"})


def test_the_steps_of_single_nodes_do_not_ask_for_the_whole_jobs_gpus(tmp_path: Path) -> None:
    env = {"SLURM_GPUS": "8", "SLURM_JOB_ID": "7", "SLURM_GPUS_PER_TASK": "1"}
    job = LaunchJob(Hostfile((Host("n1", 4),)), 4, (), tmp_path, False, env, tmp_path)
    assert by_srun(job).env == {"SLURM_JOB_ID": "7"}


def test_the_batch_script_is_one_that_bash_understands() -> None:
    checked = subprocess.run(["bash", "-n", "slurm/train.sbatch"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
