from pathlib import Path

import pytest

from train.errors import ConfigError
from train.hosts import devices
from train.hosts.devices import Devices, driver_version, find, find_amd
from train.launch.command import visible


def amd(root: Path, simds: list[int]) -> Path:
    (root / "dev").mkdir()
    (root / "dev/kfd").touch()
    for number, simd in enumerate(simds):
        node = root / f"sys/class/kfd/kfd/topology/nodes/{number}"
        node.mkdir(parents=True)
        (node / "properties").write_text(f"cpu_cores_count 64\nsimd_count {simd}\n")
    return root


def nvidia(root: Path, count: int) -> Path:
    for number in range(count):
        (root / f"proc/driver/nvidia/gpus/0000:0{number}:00.0").mkdir(parents=True)
    return root


def test_a_machine_without_a_gpu_has_cpu_ranks(tmp_path: Path) -> None:
    assert find({"PATH": "", "CUDA_VISIBLE_DEVICES": "0"}, tmp_path) == Devices("cpu")


def test_every_die_of_an_amd_card_is_a_device_and_a_cpu_node_is_none(tmp_path: Path) -> None:
    assert find_amd(amd(tmp_path, [0, 0, 440, 440])) == ("", "")
    env = {"PATH": "", "ROCR_VISIBLE_DEVICES": "1"}
    assert find(env, tmp_path) == Devices("amd", (1,), restricted=True)


def test_amds_gpus_may_be_named_by_their_uuids(tmp_path: Path) -> None:
    amd(tmp_path, [0, 440, 440])
    for number in (1, 2):
        path = tmp_path / f"sys/class/kfd/kfd/topology/nodes/{number}/properties"
        path.write_text(f"simd_count 440\nunique_id {0xABC0 + number}\n")
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        env = {"PATH": "", name: "GPU-000000000000abc2"}
        assert find(env, tmp_path) == Devices("amd", (1,), restricted=True)
    with pytest.raises(ConfigError, match="or their UUIDs, but is 'GPU-f'"):
        find({"PATH": "", "ROCR_VISIBLE_DEVICES": "GPU-f"}, tmp_path)


def kernel_names(root: Path, versions: list[int]) -> Path:
    amd(root, [256] * len(versions))
    for number, version in enumerate(versions):
        path = root / f"sys/class/kfd/kfd/topology/nodes/{number}/properties"
        path.write_text(f"simd_count 256\ngfx_target_version {version}\n")
    return root


def test_amds_architectures_are_named_as_compilers_do(tmp_path: Path) -> None:
    found = find_amd(kernel_names(tmp_path, [90008, 90010, 90402, 90500, 110003, 120001]))
    assert found == ("gfx908", "gfx90a", "gfx942", "gfx950", "gfx1103", "gfx1201")


def test_a_laptops_own_graphics_are_no_training_gpu(tmp_path: Path) -> None:
    root = kernel_names(tmp_path, [110003])
    assert find({"PATH": ""}, root) == Devices("cpu", unfit=("gfx1103",))


def test_a_card_beside_a_processors_graphics_keeps_its_number(tmp_path: Path) -> None:
    root = kernel_names(tmp_path, [100306, 110000])
    assert find({"PATH": ""}, root) == Devices("amd", (1,), unfit=("gfx1036",))
    assert visible("amd", (1,), restricted=False) == {"HIP_VISIBLE_DEVICES": "1"}
    assert visible("amd", (0, 1), restricted=False) == {}


def test_the_kernel_tells_the_nvidia_drivers_version(tmp_path: Path) -> None:
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release Build\n"
        "GCC version:  gcc version 13.3.0\n"
    )
    assert driver_version(tmp_path) == "570.124.06"
    assert driver_version(tmp_path / "absent") == ""


def test_nvidia_gpus_are_counted_by_the_driver_where_there_is_no_tool(tmp_path: Path) -> None:
    root = nvidia(tmp_path, 4)
    assert find({"PATH": ""}, root) == Devices("nvidia", (0, 1, 2, 3))


def test_nvidia_smi_is_believed_before_the_driver(tmp_path: Path) -> None:
    root = nvidia(tmp_path, 8)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA A100 (UUID: GPU-1)'\necho '  MIG 1g'\n")
    tool.chmod(0o755)
    assert find({"PATH": str(tmp_path)}, root) == Devices("nvidia", (0,))


def test_uuids_name_gpus_even_where_the_driver_shows_no_files(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    lines = "".join(f"GPU {n}: NVIDIA H100 (UUID: GPU-{n}a{n}b)\n" for n in range(3))
    tool.write_text(f"#!/bin/sh\ncat <<'E'\n{lines}E\n")
    tool.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/bin", "CUDA_VISIBLE_DEVICES": "GPU-2a2b,GPU-0a"}
    assert find(env, tmp_path) == Devices("nvidia", (2, 0), restricted=True)
    with pytest.raises(ConfigError, match="or their UUIDs"):
        find(env | {"CUDA_VISIBLE_DEVICES": "GPU-"}, tmp_path)


MIG = """GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-5d5ba0d6)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-c1b2d3e4)
  MIG 1g.10gb     Device  0: (UUID: MIG-8f6a72e1)
  MIG 3g.40gb     Device  1: (UUID: MIG-0a4c1d2e)
"""


def test_one_mig_slice_is_a_device_and_several_are_refused(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat <<'E'\n{MIG}E\n")
    tool.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/bin", "CUDA_VISIBLE_DEVICES": "MIG-0a4c1d2e"}
    assert find(env, tmp_path) == Devices("nvidia", (1,), restricted=True, slice="3g.40gb")
    for word in ("MIG-0a4c1d2e,MIG-8f6a72e1", "MIG-1"):
        with pytest.raises(ConfigError, match="takes one MIG slice.*: MIG-8f6a72e1, MIG-0a4c1d2e"):
            find(env | {"CUDA_VISIBLE_DEVICES": word}, tmp_path)


def test_a_tool_that_does_not_answer_is_told(tmp_path: Path, monkeypatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 5\n")
    tool.chmod(0o755)
    monkeypatch.setattr(devices, "_PATIENCE", 0.2)
    with pytest.raises(ConfigError, match="nvidia-smi did not answer within 0 s"):
        find({"PATH": f"{tmp_path}:/bin"}, tmp_path)


def test_a_driver_whose_tool_finds_nothing_is_a_fault_not_a_cpu(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Unable to determine the device handle'; exit 255\n")
    tool.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/bin"}
    assert find(env, tmp_path) == Devices("cpu")  # the tool alone, without a driver
    nvidia(tmp_path, 1)
    with pytest.raises(ConfigError, match="finds no GPU .Unable to determine the device handle"):
        find(env, tmp_path)
    assert find(env | {"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == Devices("cpu")


def test_hidden_gpus_are_not_counted(tmp_path: Path) -> None:
    root = nvidia(tmp_path, 4)
    seen = find({"PATH": "", "CUDA_VISIBLE_DEVICES": "3, 1"}, root)
    assert seen == Devices("nvidia", (3, 1), restricted=True)
    assert find({"PATH": "", "CUDA_VISIBLE_DEVICES": ""}, root) == Devices("cpu")


@pytest.mark.parametrize("value", ["4", "GPU-8a3f", "0,x", "0," * 9 + "7"])
def test_a_visible_device_that_is_not_there_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES must list numbers"):
        find({"PATH": "", "CUDA_VISIBLE_DEVICES": value}, nvidia(tmp_path, 4))
