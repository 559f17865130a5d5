from pathlib import Path

import pytest

from train.errors import PlanError
from train.planning import unknown_gpu
from train.planning.calibration import Calibration, write_calibration
from train.planning.cluster import Device, require_bf16
from train.planning.cluster import cluster_of_devices as cluster
from train.run.planning import describe_layout, describe_others


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([0], "Found 1 host x 1 = 1 ranks"),
        ([0, 0, 1, 1], "Found 2 hosts x 2 = 4 ranks"),
        ([0, 0, 1], "Found 2 hosts with 2, 1 = 3 ranks"),
    ],
)
def test_the_layout_found_is_told(nodes: list[int], words: str) -> None:
    assert describe_layout(nodes) == words


def test_ranks_that_share_a_core_are_predicted_to_be_slower_for_it() -> None:
    alone = cluster([Device(0, "cpu", 1 << 30, 2 << 30)] * 2)
    crowded = cluster([Device(0, "cpu", 1 << 30, 8 << 30, share=0.25)] * 8)
    assert crowded.gpu.achievable_flops == alone.gpu.achievable_flops / 4
    assert crowded.gpu.memory == alone.gpu.memory
    assert (alone.gpus, crowded.gpus) == (2, 8)


def test_the_smallest_hosts_own_memory_is_planned_with_not_a_guess() -> None:
    devices = [
        Device(node, "NVIDIA A100-SXM4-80GB", 79 << 30, (64 << 30) - node) for node in (0, 1)
    ]
    assert cluster(devices).host_memory == (64 << 30) - 1


def test_a_gpu_that_the_table_lacks_is_planned_for_and_told() -> None:
    gpu = cluster([Device(0, "GPU of Tomorrow", 30 << 30, 64 << 30)]).gpu
    assert (gpu.name, gpu.memory, gpu.known) == ("GPU of Tomorrow", 30 << 30, False)
    assert "the table has no 'GPU of Tomorrow'" in str(unknown_gpu(gpu))
    assert unknown_gpu(cluster([Device(0, "Tesla T4", 14 << 30, 64 << 30)]).gpu) is None
    assert unknown_gpu(cluster([Device(0, "cpu", 1 << 30, 1 << 30)]).gpu) is None


def test_what_was_measured_on_this_machine_replaces_the_table(tmp_path: Path) -> None:
    devices = [Device(0, "cpu", 1 << 30, 2 << 30, share=0.5)] * 2
    write_calibration(tmp_path / "calibration", Calibration("cpu", 4e10, 2e9, 3e8))
    found = cluster(devices, tmp_path / "calibration").gpu
    assert (found.achievable_flops, found.bandwidth, found.link) == (2e10, 1e9, 3e8)


def test_bf16_is_refused_on_a_card_that_has_none() -> None:
    old = Device(0, "Tesla T4", 14 << 30, 64 << 30, architecture="sm_75")
    require_bf16([old], "fp32")
    require_bf16([old], "fp16")
    require_bf16([Device(0, "cpu", 1 << 30, 1 << 30)], "bf16")
    require_bf16([Device(0, "NVIDIA L4", 22 << 30, 64 << 30)], "bf16")
    with pytest.raises(
        PlanError, match=r"Tesla T4 \(sm_75\) has no bf16.*--precision fp16, or fp32"
    ):
        require_bf16([old], "bf16")


def test_what_others_hold_of_a_gpu_is_planned_around_and_told() -> None:
    shared = Device(0, "NVIDIA GeForce RTX 4090", 20 << 30, 64 << 30, busy=3 << 30)
    assert cluster([shared]).gpu.memory == 20 << 30
    assert list(describe_others([shared])) == [
        "rank 0's NVIDIA GeForce RTX 4090 has 3.0 GiB in use by other processes: "
        "planning for the 20.0 GiB that are free"
    ]
    assert not list(describe_others([Device(0, "NVIDIA H100 PCIe", 79 << 30, 64 << 30)]))


def test_an_unknown_gpu_that_was_measured_is_no_longer_assumed(tmp_path: Path) -> None:
    device = Device(0, "GPU of Tomorrow", 30 << 30, 64 << 30, architecture="sm_120")
    write_calibration(tmp_path, Calibration("GPU of Tomorrow", 4e14, 2e12, 0.0))
    gpu = cluster([device], tmp_path).gpu
    assert (gpu.achievable_flops, gpu.known, unknown_gpu(gpu)) == (4e14, False, None)
