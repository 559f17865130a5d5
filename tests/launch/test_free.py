"""A run that takes what there is leaves GPUs alone that others use (a stand-in nvidia-smi)."""

import time
from pathlib import Path

from tests.launch.test_supervise import finish, start
from tests.support.fakes import host_report
from train.hosts.hostfile import Host
from train.hosts.usage import DeviceUsage
from train.launch import preflight
from train.launch.command import visible
from train.launch.free import free_of

# Of four GPUs, number 1 has been busy since before, and number 3 until the file FREE is there.
SMI = """#!/bin/sh
card() { echo "NVIDIA H100 80GB HBM3, $1, 81559, 0, 70.0, 580.95.05"; }
if [ "$1" = -L ]; then
  for i in 0 1 2 3; do echo "GPU $i: NVIDIA H100 80GB HBM3 (UUID: GPU-$i)"; done; exit
fi
card 4; card 40000; card 4; if [ -e "$FREE" ]; then card 4; else card 23000; fi
"""
TORCH = "__version__ = '2.13.0'\ncuda = '13.0'\nhip = None\n"


def card(used: float) -> DeviceUsage:
    return DeviceUsage("NVIDIA H100 80GB HBM3", used, 85e9, None, None)


def test_gpus_that_others_use_are_left_out_and_named() -> None:
    report = host_report(gpus=(4, 5, 6, 7), usage=tuple(map(card, (0, 4e10, 1e9, 2.3e10))),
                         device="nvidia", restricted=True)  # fmt: skip
    found = free_of(report)
    assert (found.gpus, len(found.usage)) == ((4, 6), 2)
    assert found.held == "GPUs 5 (40.0 GB), 7 (23.0 GB)"
    # Those that the run itself uses are its own, whatever they hold.
    assert free_of(report, own=(5,)).gpus == (4, 5, 6)
    assert free_of(report, own=(5, 7)) is report
    chosen = visible("nvidia", found.gpus, restricted=True, chosen=True)
    assert chosen == {"CUDA_VISIBLE_DEVICES": "4,6", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    none = free_of(host_report(gpus=(0,), usage=(card(5e10),), device="nvidia"))
    assert preflight.error_of(Host("n", 1), none, "") == (
        "host n: 0 GPUs are free; others use GPU 0 (50.0 GB)"
    )


def test_a_run_takes_the_free_gpus_and_one_that_becomes_free(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("")
    (tmp_path / "torch/version.py").write_text(TORCH)
    tool = tmp_path / "bin/nvidia-smi"
    tool.write_text(SMI)
    tool.chmod(0o755)
    run_dir, free = tmp_path / "r", tmp_path / "free"
    told = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "PYTHONPATH": str(tmp_path), "LEAST": "1",
            "FREE": str(free)}  # fmt: skip
    words = ("--steps", "2000", "--checkpoints", "--tell", "CUDA_VISIBLE_DEVICES")
    process = start(run_dir, 4, *words, hosts="localhost slots=4\n", **told)
    waited(lambda: (run_dir / "told").exists())
    free.touch()
    waited(lambda: len((run_dir / "told").read_text().split()) == 2)
    time.sleep(0.5)
    (run_dir / "STOP").touch()
    code, _, err = finish(process, run_dir)
    assert code == 75, err
    assert (run_dir / "told").read_text().split() == ["0,2", "0,2,3"]
    assert "host localhost: 2 of 4 GPUs are left out: others use GPUs 1 (41.9 GB), 3" in err
    assert "2 nvidia GPUs on this machine" in err and "resizing from 2 to 3" in err


def waited(found, patience: float = 60.0) -> None:
    deadline = time.monotonic() + patience
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.1)
