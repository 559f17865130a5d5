import pytest

from train.planning.calibration import Calibration, calibrated, path_of, write_calibration
from train.planning.hardware import find_gpu

H100 = find_gpu("H100-SXM")


def test_what_was_measured_replaces_the_table(tmp_path):
    folder = tmp_path / "cache"
    path = write_calibration(folder, Calibration("H100-SXM", 6e14, 3e12, 3e11))
    gpu = calibrated(H100, folder)
    assert gpu.achievable_flops == pytest.approx(0.8 * 6e14)  # what a whole step holds of it
    assert gpu.bandwidth == pytest.approx(3e12 / 0.88)  # the data sheet's, of which a copy has 88 %
    assert gpu.link == 3e11
    assert (gpu.memory, gpu.peak, gpu.nic) == (H100.memory, H100.peak, H100.nic)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert path == path_of(folder, "h100 sxm")


def test_a_single_device_keeps_the_tables_link_and_another_gpu_its_own_row(tmp_path):
    write_calibration(tmp_path, Calibration("H100-SXM", 6e14, 3e12, 0.0))
    assert calibrated(H100, tmp_path).link == H100.link
    assert calibrated(find_gpu("H200"), tmp_path) == find_gpu("H200")


def test_a_broken_file_is_not_used(tmp_path):
    path_of(tmp_path, "H100-SXM").write_text("{")
    assert calibrated(H100, tmp_path) == H100
    path_of(tmp_path, "H100-SXM").write_text('{"surprise": 1}')
    assert calibrated(H100, tmp_path) == H100
