"""What torch, nvidia-smi, amd-smi and lspci call devices, and the row that is meant."""

import pytest

from train.planning import find_gpu
from train.planning.advice import unknown_gpu
from train.planning.gpus import ROWS
from train.planning.hardware import GPUS

GIB = 2**30
NAMES = {
    "Tesla V100-SXM2-16GB": "V100-SXM2-16GB",
    "Tesla V100-SXM2-32GB": "V100-SXM2-32GB",
    "Tesla V100-SXM3-32GB": "V100-SXM2-32GB",
    "Tesla V100-DGXS-32GB": "V100-SXM2-32GB",
    "Tesla V100-PCIE-16GB": "V100-PCIe-16GB",
    "Tesla V100-PCIE-32GB": "V100-PCIe-32GB",
    "Tesla V100-FHHL-16GB": "V100-PCIe-16GB",
    "Tesla V100S-PCIE-32GB": "V100S-PCIe-32GB",
    "Tesla T4": "T4",
    "NVIDIA T4G": "T4",
    "GRID T4-16Q": "T4",
    "NVIDIA A2": "A2",
    "NVIDIA A10": "A10",
    "NVIDIA A10G": "A10G",
    "NVIDIA A16": "A16",
    "NVIDIA A30": "A30",
    "NVIDIA A40": "A40",
    "A100-SXM4-40GB": "A100-SXM-40GB",
    "NVIDIA A100-SXM4-40GB": "A100-SXM-40GB",
    "NVIDIA A100-SXM4-80GB": "A100-SXM-80GB",
    "NVIDIA A100-SXM-64GB": "A100-SXM-64GB",
    "NVIDIA A100-PCIE-40GB": "A100-PCIe-40GB",
    "A100-PCIE-40GB": "A100-PCIe-40GB",
    "NVIDIA A100 80GB PCIe": "A100-PCIe-80GB",
    "NVIDIA A100-PCIE-80GB": "A100-PCIe-80GB",
    "NVIDIA A100X": "A100-PCIe-80GB",
    "NVIDIA A100-SXM4-80GB MIG 1g.10gb": "A100-SXM-80GB-MIG-1g.10gb",
    "NVIDIA A100-SXM4-80GB MIG 3g.40gb": "A100-SXM-80GB-MIG-3g.40gb",
    "NVIDIA A100-SXM4-40GB MIG 2g.10gb": "A100-SXM-40GB-MIG-2g.10gb",
    "NVIDIA A30 MIG 1g.6gb": "A30-MIG-1g.6gb",
    "NVIDIA H100 80GB HBM3 MIG 1g.20gb": "H100-SXM-MIG-1g.20gb",
    "NVIDIA H100 80GB HBM3 MIG 1c.3g.40gb": "H100-SXM-MIG-3g.40gb",
    "NVIDIA H200 MIG 1g.18gb+me": "H200-MIG-1g.18gb",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition MIG 1g.24gb": "RTX-PRO-6000-Server-MIG-1g.24gb",
    "NVIDIA A800-SXM4-80GB": "A800-SXM-80GB",
    "NVIDIA A800 80GB PCIe": "A800-PCIe-80GB",
    "NVIDIA A800 40GB Active": "A800-PCIe-40GB",
    "NVIDIA L4": "L4",
    "NVIDIA L20": "L20",
    "NVIDIA L40": "L40",
    "NVIDIA L40S": "L40S",
    "NVIDIA L40G": "L40S",
    "NVIDIA H100 80GB HBM3": "H100-SXM",
    "NVIDIA H100 PCIe": "H100-PCIe",
    "NVIDIA H100 NVL": "H100-NVL",
    "NVIDIA H100 64GB HBM2": "H100-SXM-64GB",
    "NVIDIA H100 96GB HBM3": "H100-SXM-96GB",
    "NVIDIA H800": "H800-SXM",
    "NVIDIA H800 PCIe": "H800-PCIe",
    "NVIDIA H20": "H20",
    "NVIDIA H20-3e": "H20-141GB",
    "NVIDIA H200": "H200",
    "NVIDIA H200 NVL": "H200-NVL",
    "NVIDIA GH200 480GB": "GH200",
    "NVIDIA GH200 120GB": "GH200",
    "NVIDIA GH200 144G HBM3e": "GH200-144GB",
    "NVIDIA B100": "B100",
    "NVIDIA B200": "B200",
    "NVIDIA GB200": "GB200",
    "NVIDIA B300 SXM6 AC": "B300",
    "NVIDIA GB300": "GB300",
    "NVIDIA GB10": "GB10",
    "NVIDIA RTX A2000 12GB": "RTX-A2000",
    "NVIDIA RTX A4000": "RTX-A4000",
    "NVIDIA RTX A4500": "RTX-A4500",
    "NVIDIA RTX A5000": "RTX-A5000",
    "NVIDIA RTX A5500": "RTX-A5500",
    "NVIDIA RTX A6000": "RTX-A6000",
    "NVIDIA RTX A5000 Laptop GPU": "RTX-A5000-Laptop",
    "NVIDIA RTX 2000 Ada Generation": "RTX-2000-Ada",
    "NVIDIA RTX 4000 SFF Ada Generation": "RTX-4000-SFF-Ada",
    "NVIDIA RTX 4000 Ada Generation": "RTX-4000-Ada",
    "NVIDIA RTX 4500 Ada Generation": "RTX-4500-Ada",
    "NVIDIA RTX 5000 Ada Generation": "RTX-5000-Ada",
    "NVIDIA RTX 5000 Ada Generation Laptop GPU": "RTX-5000-Ada-Laptop",
    "NVIDIA RTX 5880 Ada Generation": "RTX-5880-Ada",
    "NVIDIA RTX 6000 Ada Generation": "RTX-6000-Ada",
    "NVIDIA RTX PRO 2000 Blackwell": "RTX-PRO-2000",
    "NVIDIA RTX PRO 4000 Blackwell": "RTX-PRO-4000",
    "NVIDIA RTX PRO 4500 Blackwell": "RTX-PRO-4500",
    "NVIDIA RTX PRO 5000 Blackwell": "RTX-PRO-5000",
    "NVIDIA RTX PRO 5000 Blackwell Generation Laptop GPU": "RTX-PRO-5000-Laptop",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "RTX-PRO-6000",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": "RTX-PRO-6000-Max-Q",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTX-PRO-6000-Server",
    "Quadro RTX 5000 with Max-Q Design": "Quadro-RTX-5000-Laptop",
    "Quadro RTX 6000": "Quadro-RTX-6000",
    "Quadro RTX 8000": "Quadro-RTX-8000",
    "NVIDIA TITAN RTX": "TITAN-RTX",
    "NVIDIA TITAN V": "TITAN-V",
    "NVIDIA GeForce RTX 2060": "RTX2060",
    "NVIDIA GeForce RTX 2070 with Max-Q Design": "RTX2070-Laptop",
    "NVIDIA GeForce RTX 2080 SUPER": "RTX2080-SUPER",
    "NVIDIA GeForce RTX 2080 Ti": "RTX2080Ti",
    "GeForce RTX 2080 Ti": "RTX2080Ti",
    "NVIDIA GeForce RTX 3050 Ti Laptop GPU": "RTX3050-Laptop",
    "NVIDIA GeForce RTX 3060": "RTX3060",
    "NVIDIA GeForce RTX 3060 Ti": "RTX3060Ti",
    "NVIDIA GeForce RTX 3070 Laptop GPU": "RTX3070-Laptop",
    "NVIDIA GeForce RTX 3080": "RTX3080",
    "NVIDIA GeForce RTX 3080 Ti Laptop GPU": "RTX3080Ti-Laptop",
    "NVIDIA GeForce RTX 3090": "RTX3090",
    "NVIDIA GeForce RTX 3090 Ti": "RTX3090Ti",
    "NVIDIA GeForce RTX 4060 Laptop GPU": "RTX4060-Laptop",
    "NVIDIA GeForce RTX 4060 Ti": "RTX4060Ti",
    "NVIDIA GeForce RTX 4070 SUPER": "RTX4070-SUPER",
    "NVIDIA GeForce RTX 4070 Ti SUPER": "RTX4070Ti-SUPER",
    "NVIDIA GeForce RTX 4080": "RTX4080",
    "NVIDIA GeForce RTX 4080 SUPER": "RTX4080-SUPER",
    "NVIDIA GeForce RTX 4090": "RTX4090",
    "NVIDIA GeForce RTX 4090 D": "RTX4090D",
    "NVIDIA GeForce RTX 4090 Laptop GPU": "RTX4090-Laptop",
    "NVIDIA GeForce RTX 5060": "RTX5060",
    "NVIDIA GeForce RTX 5070": "RTX5070",
    "NVIDIA GeForce RTX 5070 Ti": "RTX5070Ti",
    "NVIDIA GeForce RTX 5080": "RTX5080",
    "NVIDIA GeForce RTX 5090": "RTX5090",
    "NVIDIA GeForce RTX 5090 D": "RTX5090D",
    "NVIDIA GeForce RTX 5090 Laptop GPU": "RTX5090-Laptop",
    "AMD Instinct MI100": "MI100",
    "Arcturus GL-XL [Instinct MI100]": "MI100",
    "AMD Instinct MI210": "MI210",
    "AMD INSTINCT MI210": "MI210",
    "AMD INSTINCT MI250 (MCM) OAM AC MBA": "MI250",
    "AMD Instinct MI250X/MI250": "MI250",
    "Aldebaran/MI200 [Instinct MI250X/MI250]": "MI250",
    "AMD Instinct MI250X": "MI250X",
    "AMD Instinct MI300A": "MI300A",
    "AMD Instinct MI300X": "MI300X",
    "AMD Instinct MI300X OAM": "MI300X",
    "AMD Instinct MI300X VF": "MI300X",
    "AMD Instinct MI308X": "MI308X",
    "AMD Instinct MI325X": "MI325X",
    "AMD Instinct MI350X": "MI350X",
    "AMD Instinct MI355X": "MI355X",
    "AMD Radeon RX 7900 XTX": "RX7900XTX",
    "AMD Radeon PRO W7900": "Radeon-PRO-W7900",
    "AMD Radeon AI PRO R9700": "Radeon-AI-PRO-R9700",
    "AMD Radeon 8060S Graphics": "Radeon-8060S",
}


@pytest.mark.parametrize("reported", NAMES)
def test_a_drivers_name_is_the_right_row(reported):
    assert find_gpu(reported).name == NAMES[reported]


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_a_rows_own_name_is_that_row_and_its_figures_are_a_gpus(gpu):
    assert find_gpu(gpu.name) is gpu
    assert 4e9 < gpu.memory < 400e9
    assert 0.1e12 < gpu.bandwidth < 10e12
    assert 15e12 < gpu.peak < 3000e12
    assert 0.02 < gpu.fp32_ratio < 0.75
    assert 0.4 < gpu.achievable_flops / gpu.peak < 0.9
    assert gpu.architecture.startswith(("sm_", "gfx", "gaudi"))


def test_no_name_stands_twice():
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_a_mig_slice_has_its_share_of_the_cards_rates():
    whole, small = find_gpu("NVIDIA A100-SXM4-80GB"), find_gpu("NVIDIA A100-SXM4-80GB MIG 1g.10gb")
    assert small.peak == pytest.approx(whole.peak / 7)
    assert 9 * GIB < small.memory < 10 * GIB
    assert small.bandwidth == pytest.approx(whole.bandwidth / 8, rel=0.07)
    assert find_gpu("NVIDIA A100-SXM4-80GB MIG 1g.20gb").memory == pytest.approx(2 * small.memory)
    assert small.link < whole.link / 10  # slices reach one another through the host only
    assert small.known


def test_a_laptops_card_is_slower_than_the_desktops_and_its_peak_is_not_known():
    desk, lap = find_gpu("NVIDIA GeForce RTX 4090"), find_gpu("NVIDIA GeForce RTX 4090 Laptop GPU")
    assert lap.achievable_flops < 0.7 * desk.achievable_flops
    assert not lap.known
    assert "RTX4090-Laptop" in unknown_gpu(lap)


@pytest.mark.parametrize(
    ("memory", "architecture", "name"),
    [
        (192, "gfx942:sramecc+:xnack-", "MI300X"),
        (128, "gfx942", "MI300A"),
        (256, "gfx942", "MI325X"),
        (288, "gfx950:sramecc+:xnack-", "MI355X"),
        (64, "gfx90a", "MI250"),
        (32, "gfx908", "MI100"),
    ],
)
@pytest.mark.parametrize("reported", ["AMD Radeon Graphics", "AMD GPU"])
def test_a_name_that_says_nothing_is_settled_by_architecture_and_memory(
    reported, memory, architecture, name
):
    found = find_gpu(reported, memory * GIB, architecture)
    assert (found.name, found.known) == (name, True)


def test_an_unknown_device_gets_the_rates_of_its_architectures_nearest_card_and_says_so():
    found = find_gpu("NVIDIA RTX 9999", 90 * GIB, "sm_120")
    assert (found.name, found.memory, found.known) == ("NVIDIA RTX 9999", 90 * GIB, False)
    assert "assumed to be those of RTX-PRO-6000" in unknown_gpu(found)
    other = find_gpu("AMD Radeon Graphics", 8 * GIB, "gfx1103")
    assert (other.architecture, other.assumed) == ("gfx1103", "those of A10")
