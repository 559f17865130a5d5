from pathlib import Path

import pytest

from train.commands import smi
from train.errors import ConfigError
from train.hosts import usage
from train.hosts.hostfile import Host
from train.hosts.remote import Answer


def answer(name: str, used: float, busy: float | None, jobs: tuple[str, ...] = ()) -> Answer:
    card = {"name": "NVIDIA H100", "used": used, "total": 80e9, "busy": busy, "power": 350.0}
    return Answer(Host(name, 2), {"devices": [card, card], "jobs": list(jobs)})


def test_the_accelerator_is_one_row_as_if_it_were_one_device() -> None:
    rows = [
        smi.row(answer("n1", 40e9, 1.0, ("r7",))),
        smi.row(answer("n2", 20e9, 0.5)),
        smi.row(Answer(Host("n3", 2), None, "no answer within 5 s")),
    ]
    lines = smi.table([smi.whole("3node", rows), *rows])
    assert lines[1].startswith("3node ")
    assert "4 x NVIDIA H100" in lines[1] and "120.0 / 320.0 GB" in lines[1]
    assert "75%" in lines[1] and "1400 W" in lines[1] and "r7" in lines[1]
    assert lines[4] == "n3      no answer within 5 s"


def test_numbers_that_a_driver_does_not_tell_are_a_dash() -> None:
    card = {"name": "CPU (2 cores)", "used": 1e9, "total": 8e9, "busy": None, "power": None}
    row = smi.row(Answer(Host("a", 1), {"devices": [card], "jobs": []}))
    assert smi.table([row])[1].split()[-3:] == ["-", "-", "-"]


def test_an_unknown_word_is_refused() -> None:
    assert smi.arguments(["--hosts", "--hostfile", "h"]) == (Path("h"), True)
    with pytest.raises(ConfigError, match="does not know '--host'"):
        smi.arguments(["--host"])


def test_nvidias_tool_is_read_with_gaps(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 1024, 143771, 97, 512.25, 580.95.05'\n"
                    "echo 'NVIDIA H200, 0, 143771, [N/A], [N/A]'\n")  # fmt: skip
    tool.chmod(0o755)
    first, second = usage.nvidia({"PATH": f"{tmp_path}:/bin"})
    assert first == usage.DeviceUsage(
        "NVIDIA H200", 1024 * 2**20, 143771 * 2**20, 0.97, 512.25, "580.95.05"
    )
    assert (second.busy, second.power) == (None, None)


def test_a_slow_tool_is_told_and_not_taken_for_no_gpu(tmp_path: Path, monkeypatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 5\n")
    tool.chmod(0o755)
    assert usage._PATIENCE >= 20 and smi._PATIENCE > usage._PATIENCE  # eight sleeping GPUs wake up
    monkeypatch.setattr(usage, "_PATIENCE", 0.2)
    (silent,) = usage.read({"PATH": f"{tmp_path}:/bin"})
    assert silent.name == "NVIDIA GPUs (nvidia-smi took over 0 s)"


def test_amds_driver_files_are_read(tmp_path: Path) -> None:
    card = tmp_path / "sys/class/drm/card1/device"
    (card / "hwmon/hwmon4").mkdir(parents=True)
    for name, text in (
        ("mem_info_vram_total", "68702699520"), ("mem_info_vram_used", "1000"),
        ("gpu_busy_percent", "50"), ("product_name", "AMD Instinct MI250"),
        ("hwmon/hwmon4/power1_average", "90000000"),
    ):  # fmt: skip
        (card / name).write_text(text + "\n")
    assert usage.amd(tmp_path) == (
        usage.DeviceUsage("AMD Instinct MI250", 1000.0, 68702699520.0, 0.5, 90.0),
    )
    # An MI300 tells what it draws now, and no average.
    (card / "hwmon/hwmon4/power1_average").rename(card / "hwmon/hwmon4/power1_input")
    assert usage.amd(tmp_path)[0].power == 90.0


def test_a_host_without_a_gpu_shows_its_processors_and_its_jobs(tmp_path: Path) -> None:
    (own,) = usage.read({"PATH": ""}, tmp_path)
    assert own.name.startswith("CPU") and 0 < own.used < own.total
    words = ["python", "-u", "/x/train/main.py", "--seed", "1", "--run-dir", "runs/r9", ""]
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/cmdline").write_text("\0".join(words))
    assert usage.jobs(tmp_path) == ("r9",)


def test_a_mig_slice_is_shown_as_itself(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\nif [ \"$1\" = -L ]; then echo 'GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-1)'\n"
        "echo '  MIG 2g.20gb     Device  0: (UUID: MIG-7)'\n"
        "else echo 'NVIDIA A100-SXM4-80GB, 100, 81920, 10, 72.0, 580.95.05'; fi\n"
    )
    tool.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/bin", "CUDA_VISIBLE_DEVICES": "MIG-7"}
    (own,) = usage.read(env, tmp_path)
    assert (own.name, own.total, own.power) == ("NVIDIA A100-SXM4-80GB MIG 2g.20gb", 20e9, None)
    (whole,) = usage.read({**env, "CUDA_VISIBLE_DEVICES": "MIG-8"}, tmp_path)
    assert whole.total == 81920 * 2**20
