"""Eight hosts of four ranks: the shipped hostfile and the embedded preset, in both ways."""

import sys
from pathlib import Path

import pytest

from tests.chaos.launches import difference, steps
from tests.cluster.conftest import ROOT, Lab, finish, left_of, require

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def bare(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run that DeepSpeed's own launcher starts, over pdsh; its folder and its console."""
    require("pdsh")
    run_dir = tmp_path_factory.mktemp("bare") / "run"
    words = [
        "--hostfile",
        "hostfiles/8node",
        "--num_gpus",
        "4",
        "train/main.py",
        "--max-steps",
        "2",
    ]
    deepspeed = Path(sys.executable).with_name("deepspeed")
    return run_dir, finish(lab.start([deepspeed, *words, "--run-dir", run_dir]), 600)


def test_deepspeeds_own_command_runs_32_ranks_over_pdsh(bare: tuple[Path, str]) -> None:
    run_dir, out = bare
    assert "cmd = pdsh " in out
    assert "node1: [info] Found 8 hosts x 4 = 32 ranks" in out
    assert [record["world_size"] for record in steps(run_dir)] == [32, 32]
    assert (run_dir / "DONE").exists() and (run_dir / "model" / "config.json").exists()
    assert left_of(run_dir) == []


def test_32_ranks_by_one_number_make_the_same_curve(
    lab: Lab, bare: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert "8node: 32 x" in finish(
        lab.start([sys.executable, "-m", "train.cli", "switch", "8node"], **env)
    )
    argv = [ROOT / "launch.sh", "32", "--max-steps", "2", "--run-dir", run_dir]
    out = finish(lab.start(argv, **env), 600)
    assert "32 CPU ranks (no GPU was found) on 8 hosts: node1 x 4, node2 x 4, " in out
    assert [record["world_size"] for record in steps(run_dir)] == [32, 32]
    found = difference(run_dir, bare[0])
    with capsys.disabled():
        print(f"\n\n32 ranks by launch.sh against 32 by pdsh: {found:.1e}")
    assert found <= 1e-6
    assert left_of(run_dir) == []
