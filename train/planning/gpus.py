"""The table of GPUs: memory, rates and links of one device each, as torch counts devices.

Peaks are the vendors' dense ones with fp32 sums, in bf16 (fp16 before Ampere) and in fp32 outside
of tensor cores, from their data sheets and architecture papers: where a sheet names sparse rates
only, a half of them, and of the FP4 figures of Blackwell's cards an eighth. A card that was sold
with fewer units and no sheet of its own (MI308X, one site's A100 of 64 GB) has its units' share.
Other sources: stas00/ml-engineering (achievable products, networks); pytorch/torchtitan
`get_peak_flops`; karpathy/nanochat `common.py`; cli99/llm-analysis. An MI250 card is two devices.
"""

from __future__ import annotations

from typing import NamedTuple


class GpuRow(NamedTuple):
    """One line of the table, in the units of data sheets.

    `pattern` finds it in what drivers call it, in small letters with single spaces, as whole words;
    the first row that fits is meant. GiB; TB/s; TFLOP/s in bf16 and in fp32; the share of the peak
    that large products reach; GB/s in one direction: inside the host, of a GPU's NIC, to the host.
    """

    name: str
    pattern: str
    architecture: str
    gib: float
    bandwidth: float
    peak: float
    fp32: float
    share: float
    link: float
    nic: float
    host_link: float


_row = GpuRow


def _card(
    name: str, pattern: str, architecture: str, gib: float, bandwidth: float, peak: float,
    fp32: float, link: float = 20, share: float = 0.85,
) -> GpuRow:  # fmt: skip
    """Return a card for desks: over PCIe, in a host with a 10 Gb/s network."""
    return GpuRow(
        name, pattern, architecture, gib, bandwidth, peak, fp32, share, link, 1.2, 1.2 * link
    )


# The share of the peak that large products reach: measured one at a time (A100), and from H100 on
# four fifths of that, because a whole step holds the power limit (8 x H100 train a 7B model at
# 46.4 %, one H100 an adapter at 40 to 43 %); 0.80 stands where nothing is published (NVIDIA); the
# MI200s from 83 TFLOP/s a device, at which four MI250 train a 7B model (Databricks, 2023).
DATA_CENTER = (
    _row("V100S-PCIe-32GB", "v100s", "sm_70", 31.7, 1.13, 130, 16.4, 0.75, 10, 12.5, 12),
    _row("V100-PCIe-32GB", "v100 .*pcie 32gb", "sm_70", 31.7, 0.90, 112, 14, 0.75, 10, 12.5, 12),
    _row("V100-PCIe-16GB", "v100 .*(pcie|fhhl)", "sm_70", 15.8, 0.90, 112, 14, 0.75, 10, 12.5, 12),
    _row("V100-SXM2-16GB", "v100 .*16gb", "sm_70", 15.8, 0.90, 125, 15.7, 0.75, 130, 12.5, 12),
    _row("V100-SXM2-32GB", "v100", "sm_70", 31.7, 0.90, 125, 15.7, 0.75, 130, 12.5, 12),
    _row("T4", "t4g?", "sm_75", 14.6, 0.32, 65, 8.1, 0.60, 10, 3, 12),
    _row("A100-SXM-64GB", "a100 .*64gb", "sm_80", 63.4, 1.64, 358, 22.4, 0.87, 250, 25, 24),
    _row("A100-PCIe-40GB", "a100 .*pcie 40gb", "sm_80", 39.4, 1.555, 312, 19.5, 0.78, 20, 12.5, 24),
    _row("A100-PCIe-80GB", "a100 .*pcie|a100x", "sm_80", 79.2, 1.94, 312, 19.5, 0.81, 20, 12.5, 24),
    _row("A100-SXM-40GB", "a100 .*40gb", "sm_80", 39.4, 1.555, 312, 19.5, 0.87, 250, 12.5, 24),
    _row("A100-SXM-80GB", "a100", "sm_80", 79.2, 2.00, 312, 19.5, 0.87, 250, 25, 24),
    _row("A800-PCIe-40GB", "a800 .*40gb", "sm_80", 39.4, 1.555, 312, 19.5, 0.78, 20, 12.5, 24),
    _row("A800-PCIe-80GB", "a800 .*pcie", "sm_80", 79.2, 1.94, 312, 19.5, 0.81, 20, 12.5, 24),
    _row("A800-SXM-80GB", "a800", "sm_80", 79.2, 2.00, 312, 19.5, 0.87, 165, 25, 24),
    _row("A30", "a30x?", "sm_80", 23.5, 0.93, 165, 10.3, 0.80, 20, 12.5, 24),
    _row("A2", "a2", "sm_86", 14.6, 0.20, 18, 4.5, 0.80, 10, 3, 12),
    _row("A10", "a10m?", "sm_86", 22.0, 0.60, 125, 31.2, 0.56, 20, 3, 24),
    _row("A10G", "a10g", "sm_86", 22.0, 0.60, 70, 35, 0.85, 20, 3, 24),
    _row("A16", "a16", "sm_86", 14.6, 0.20, 18, 4.5, 0.80, 10, 3, 12),
    _row("A40", "a40", "sm_86", 44.4, 0.70, 150, 37.4, 0.80, 20, 12.5, 24),
    _row("L4", "l4", "sm_89", 22.0, 0.30, 121, 30.3, 0.50, 20, 3, 24),
    _row("L20", "l20", "sm_89", 44.4, 0.86, 119.5, 59.8, 0.80, 20, 12.5, 24),
    _row("L40", "l40", "sm_89", 44.4, 0.86, 181, 90.5, 0.80, 20, 12.5, 24),
    _row("L40S", "l40[sg]", "sm_89", 44.4, 0.86, 362, 91.6, 0.70, 20, 12.5, 24),
    _row("H100-PCIe", "h100 .*pcie", "sm_90", 79.1, 2.00, 756, 51, 0.62, 50, 50, 50),
    _row("H100-NVL", "h100 .*nvl", "sm_90", 93.1, 3.90, 835, 60, 0.62, 50, 50, 50),
    _row("H100-SXM-64GB", "h100 .*64gb", "sm_90", 63.4, 2.00, 989, 67, 0.64, 370, 50, 50),
    _row("H100-SXM-96GB", "h100 .*9[46]gb", "sm_90", 94.5, 2.40, 900, 60, 0.64, 370, 50, 50),
    _row("H100-SXM", "h100", "sm_90", 79.1, 3.35, 989, 67, 0.64, 370, 50, 50),
    _row("H800-PCIe", "h800 .*pcie", "sm_90", 79.1, 2.00, 756, 51, 0.62, 50, 50, 50),
    _row("H800-NVL", "h800 .*nvl", "sm_90", 93.1, 3.90, 835, 60, 0.62, 50, 50, 50),
    _row("H800-SXM", "h800", "sm_90", 79.1, 3.35, 989, 67, 0.64, 165, 50, 50),
    _row("H20-141GB", "h20 (3e|141).*", "sm_90", 139.8, 4.80, 148, 44, 0.80, 370, 50, 50),
    _row("H20", "h20", "sm_90", 94.5, 4.00, 148, 44, 0.80, 370, 50, 50),
    _row("H200-NVL", "h200 .*nvl", "sm_90", 139.8, 4.80, 835, 60, 0.62, 370, 50, 50),
    _row("H200", "h200", "sm_90", 139.8, 4.80, 989, 67, 0.64, 370, 50, 50),
    _row("GH200-144GB", "gh200 14[14].*", "sm_90", 139.8, 4.80, 989, 67, 0.67, 370, 50, 400),
    _row("GH200", "gh200", "sm_90", 94.5, 4.00, 989, 67, 0.67, 370, 50, 400),
    _row("B100", "b100", "sm_100", 178.3, 8.00, 1750, 60, 0.62, 750, 50, 50),
    _row("B200", "b200", "sm_100", 178.3, 8.00, 2250, 80, 0.62, 750, 50, 50),
    _row("GB200", "gb200", "sm_100", 184.0, 8.00, 2500, 80, 0.58, 750, 50, 400),
    _row("B300", "b300", "sm_103", 267.0, 8.00, 2250, 80, 0.62, 750, 100, 50),
    _row("GB300", "gb300", "sm_103", 276.0, 8.00, 2500, 80, 0.58, 750, 100, 400),
    _row("GB10", "gb10", "sm_121", 119.7, 0.273, 125, 31, 0.80, 20, 25, 100),
    _row("Gaudi2", "gaudi ?2", "gaudi2", 94.0, 2.45, 432, 27, 0.70, 240, 37, 24),
    _row("Gaudi3", "gaudi ?3", "gaudi3", 126.0, 3.70, 1835, 114, 0.50, 480, 75, 50),
    _row("MI100", "mi100", "gfx908", 31.98, 1.23, 92.3, 46.1, 0.58, 60, 25, 24),
    _row("MI210", "mi210", "gfx90a", 63.98, 1.638, 181, 45.3, 0.58, 40, 25, 24),
    _row("MI250X", "mi250x(?!.*mi250\\b)", "gfx90a", 63.98, 1.638, 191.5, 47.9, 0.55, 80, 12.5, 30),
    _row("MI250", "mi250x?", "gfx90a", 63.98, 1.638, 181, 45.3, 0.58, 80, 12.5, 24),
    _row("MI300A", "mi300a", "gfx942", 127.9, 5.30, 980.6, 122.6, 0.45, 300, 50, 200),
    _row("MI308X", "mi308x?", "gfx942", 191.9, 5.30, 344, 43, 0.60, 300, 50, 50),
    _row("MI300X", "mi300x?", "gfx942", 191.9, 5.30, 1307, 163.4, 0.45, 300, 50, 50),
    _row("MI325X", "mi325x?", "gfx942", 255.9, 6.00, 1307, 163.4, 0.60, 300, 50, 50),
    _row("MI350X", "mi350x?", "gfx950", 287.9, 8.00, 2300, 144, 0.63, 380, 50, 50),
    _row("MI355X", "mi355x?", "gfx950", 287.9, 8.00, 2500, 157, 0.63, 380, 50, 50),
)  # fmt: skip
WORKSTATION = (
    _card("Quadro-RTX-8000", "quadro rtx 8000", "sm_75", 47.2, 0.672, 130, 16.3, 10),
    _card("Quadro-RTX-6000", "quadro rtx 6000", "sm_75", 23.6, 0.672, 130, 16.3, 10),
    _card("Quadro-RTX-5000", "quadro rtx 5000", "sm_75", 15.7, 0.448, 89, 11.2, 10),
    _card("Quadro-RTX-4000", "quadro rtx 4000", "sm_75", 7.8, 0.416, 57, 7.1, 10),
    _card("TITAN-RTX", "titan rtx", "sm_75", 23.6, 0.672, 130, 16.3, 10),
    _card("TITAN-V", "titan v", "sm_70", 11.8, 0.653, 110, 13.8, 10),
    _card("RTX-A2000", "rtx a2000", "sm_86", 11.8, 0.288, 32, 8.0),
    _card("RTX-A4000", "rtx a4000", "sm_86", 15.7, 0.448, 77, 19.2),
    _card("RTX-A4500", "rtx a4500", "sm_86", 19.7, 0.64, 95, 23.7),
    _row("RTX-A5000", "(rtx )?a5000", "sm_86", 23.5, 0.77, 111, 27.8, 0.80, 20, 3, 24),
    _card("RTX-A5500", "(rtx )?a5500", "sm_86", 23.5, 0.77, 136, 34.1),
    _row("RTX-A6000", "(rtx )?a6000(?! ada)", "sm_86", 47.4, 0.77, 155, 38.7, 0.80, 20, 3, 24),
    _card("RTX-2000-Ada", "2000e? ada", "sm_89", 15.6, 0.224, 48, 12.0),
    _card("RTX-4000-SFF-Ada", "4000 sff ada", "sm_89", 19.6, 0.28, 77, 19.2),
    _card("RTX-4000-Ada", "4000 ada", "sm_89", 19.6, 0.36, 107, 26.7),
    _card("RTX-4500-Ada", "4500 ada", "sm_89", 23.6, 0.432, 158, 39.6),
    _card("RTX-5000-Ada", "5000 ada", "sm_89", 31.5, 0.576, 261, 65.3),
    _card("RTX-5880-Ada", "5880 ada", "sm_89", 47.4, 0.96, 277, 69.3, share=0.70),
    _row("RTX-6000-Ada", "(rtx ?)?a?6000 ada", "sm_89", 47.4, 0.96, 364, 91.1, 0.70, 20, 3, 24),
    _card("RTX-PRO-2000", "rtx pro 2000", "sm_120", 15.5, 0.288, 68, 17, 40),
    _card("RTX-PRO-4000", "rtx pro 4000", "sm_120", 23.5, 0.672, 147, 37, 40),
    _card("RTX-PRO-4500", "rtx pro 4500", "sm_120", 31.3, 0.896, 211, 53, 40),
    _card("RTX-PRO-5000", "rtx pro 5000", "sm_120", 47.3, 1.344, 258, 65, 40),
    _card("RTX-PRO-6000-Max-Q", "rtx pro 6000.*max q.*", "sm_120", 95.0, 1.792, 439, 110, 40, 0.70),
    _card("RTX-PRO-6000-Server", "rtx pro 6000.*serv.*", "sm_120", 95.0, 1.597, 480, 120, 40, 0.75),
    _card("RTX-PRO-6000", "rtx pro 6000", "sm_120", 95.0, 1.792, 500, 125, 40, 0.75),
    _card("Radeon-PRO-W7800", "w7800", "gfx1100", 31.98, 0.576, 90.5, 45.2, 20, 0.60),
    _card("Radeon-PRO-W7900", "w7900", "gfx1100", 47.98, 0.864, 122.6, 61.3, 20, 0.60),
    _card("Radeon-AI-PRO-R9700", "r9700", "gfx1201", 31.8, 0.64, 191, 47.8, 40, 0.60),
)  # fmt: skip
CONSUMER = (
    _card("RTX2060-SUPER", "rtx ?2060 ?super", "sm_75", 7.8, 0.448, 28.7, 7.2, 10),
    _card("RTX2060", "rtx ?2060", "sm_75", 5.8, 0.336, 25.8, 6.5, 10),
    _card("RTX2070-SUPER", "rtx ?2070 ?super", "sm_75", 7.8, 0.448, 36.3, 9.1, 10),
    _card("RTX2070", "rtx ?2070", "sm_75", 7.8, 0.448, 29.9, 7.5, 10),
    _card("RTX2080Ti", "rtx ?2080 ?ti", "sm_75", 10.8, 0.616, 56.9, 14.2, 10),
    _card("RTX2080-SUPER", "rtx ?2080 ?super", "sm_75", 7.8, 0.496, 44.6, 11.2, 10),
    _card("RTX2080", "rtx ?2080", "sm_75", 7.8, 0.448, 42.4, 10.6, 10),
    _card("RTX3050", "rtx ?3050 ?(ti)?", "sm_86", 7.8, 0.224, 18.2, 9.1, 10),
    _card("RTX3060Ti", "rtx ?3060 ?ti", "sm_86", 7.8, 0.448, 32.4, 16.2, 10),
    _card("RTX3060", "rtx ?3060", "sm_86", 11.8, 0.36, 25.6, 12.7, 10),
    _card("RTX3070Ti", "rtx ?3070 ?ti", "sm_86", 7.8, 0.608, 43.5, 21.7, 10),
    _card("RTX3070", "rtx ?3070", "sm_86", 7.8, 0.448, 40.6, 20.3, 10),
    _card("RTX3080Ti", "rtx ?3080 ?ti", "sm_86", 11.8, 0.912, 68.2, 34.1, 10),
    _card("RTX3080", "rtx ?3080", "sm_86", 9.8, 0.76, 59.5, 29.8, 10),
    _card("RTX3090Ti", "rtx ?3090 ?ti", "sm_86", 23.6, 1.008, 80, 40, 10),
    _card("RTX3090", "rtx ?3090", "sm_86", 23.6, 0.936, 71, 35.6, 10),
    _card("RTX4050", "rtx ?4050", "sm_89", 5.8, 0.192, 18, 9),
    _card("RTX4060Ti", "rtx ?4060 ?ti", "sm_89", 15.7, 0.288, 44.1, 22.1),
    _card("RTX4060", "rtx ?4060", "sm_89", 7.8, 0.272, 30.2, 15.1),
    _card("RTX4070Ti-SUPER", "rtx ?4070 ?ti ?super", "sm_89", 15.7, 0.672, 88.2, 44.1),
    _card("RTX4070Ti", "rtx ?4070 ?ti", "sm_89", 11.7, 0.504, 80.2, 40.1),
    _card("RTX4070-SUPER", "rtx ?4070 ?super", "sm_89", 11.7, 0.504, 71, 35.5),
    _card("RTX4070", "rtx ?4070", "sm_89", 11.7, 0.504, 58.3, 29.2),
    _card("RTX4080-SUPER", "rtx ?4080 ?super", "sm_89", 15.7, 0.736, 104.4, 52.2),
    _card("RTX4080", "rtx ?4080", "sm_89", 15.7, 0.717, 97.5, 48.7),
    _card("RTX4090D", "rtx ?4090 ?d", "sm_89", 23.5, 1.01, 147.1, 73.5),
    _card("RTX4090", "rtx ?4090", "sm_89", 23.5, 1.01, 165.2, 82.6),
    _card("RTX5050", "rtx ?5050", "sm_120", 7.6, 0.32, 26.4, 13.2, 40),
    _card("RTX5060Ti", "rtx ?5060 ?ti", "sm_120", 15.5, 0.448, 47.4, 23.7, 40),
    _card("RTX5060", "rtx ?5060", "sm_120", 7.6, 0.448, 38.4, 19.2, 40),
    _card("RTX5070Ti", "rtx ?5070 ?ti", "sm_120", 15.5, 0.896, 87.9, 43.9, 40),
    _card("RTX5070", "rtx ?5070", "sm_120", 11.5, 0.672, 61.7, 30.9, 40),
    _card("RTX5080", "rtx ?5080", "sm_120", 15.5, 0.96, 112.6, 56.3, 40),
    _card("RTX5090D", "rtx ?5090 ?d", "sm_120", 31.3, 1.79, 148, 104.8, 40),
    _card("RTX5090", "rtx ?5090", "sm_120", 31.3, 1.79, 209.5, 104.8, 40),
    _card("RX7900XTX", "7900 ?xtx", "gfx1100", 23.98, 0.96, 122.8, 61.4, 20, 0.60),
    _card("RX7900XT", "7900 ?(xt|gre)", "gfx1100", 19.98, 0.80, 103, 51.5, 20, 0.60),
    _card("RX9070XT", "9070 ?xt", "gfx1201", 15.9, 0.64, 195, 48.7, 40, 0.60),
    _card("RX9070", "9070", "gfx1201", 15.9, 0.64, 145, 36.1, 40, 0.60),
    _card("Radeon-8060S", "8060s", "gfx1151", 96.0, 0.256, 59.4, 29.7, 20, 0.50),
)  # fmt: skip
ROWS = (*DATA_CENTER, *WORKSTATION, *CONSUMER)
