"""GPUs and their links. Bytes, bytes per second and FLOP per second.

Memory is what torch can see of a device, a little under what is printed on the box.
`achievable_flops` is the rate of large bf16 matrix products, measured where a measurement is
published and a share of the vendor's peak where not. One row is one device as torch counts them:
an MI250 card is two.
Sources: the vendors' data sheets; stas00/ml-engineering (achievable matmul, network tables);
pytorch/torchtitan `get_peak_flops`; karpathy/nanochat `common.py`; cli99/llm-analysis.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from train.errors import PlanError, did_you_mean
from train.text import GIB

TERA = 1e12
GIGA = 1e9


@dataclass(frozen=True)
class Gpu:
    """One device: memory, memory bandwidth, peak and achievable rates, links in one direction.

    `architecture` is the compiler's name for it: sm_80, gfx942. `power_limited_fraction` is the
    share of a single product's rate that a whole step keeps under the power limit (in
    `achievable_flops` already), `fp32_ratio` the share of the peak that products in fp32 reach,
    which run outside of the tensor cores.
    """

    name: str
    architecture: str
    memory: float
    bandwidth: float
    peak: float
    achievable_flops: float
    link: float
    nic: float
    host_link: float
    power_limited_fraction: float = 1.0
    fp32_ratio: float = 1 / 16

    @property
    def is_cpu(self) -> bool:
        """Whether this is a share of a processor rather than a GPU."""
        return self.name.startswith("cpu")

    @property
    def known(self) -> bool:
        """Whether the rates are those of a GPU in the table."""
        return self.name.lower() in _BY_NAME

    def scaled(self, share: float) -> Gpu:
        """Return it slowed to a share of itself, as where more CPU ranks than cores are."""
        return replace(
            self,
            bandwidth=self.bandwidth * share,
            peak=self.peak * share,
            achievable_flops=self.achievable_flops * share,
        )


def _gpu(
    name: str, architecture: str, gib: float, bandwidth: float, peak: float, share: float,
    link: float, nic: float, host_link: float,
) -> Gpu:  # fmt: skip
    """Build a row from GiB, TB/s, TFLOP/s, the achievable share and three GB/s."""
    held = HELD if name.startswith(POWER_LIMITED) else 1.0
    ratio = next((part for start, part in FP32_RATIO.items() if name.startswith(start)), 1 / 16)
    return Gpu(name, architecture, gib * GIB, bandwidth * TERA, peak * TERA, peak * share * TERA,
               link * GIGA, nic * GIGA, host_link * GIGA, held, ratio)  # fmt: skip


POWER_LIMITED = ("H100", "H200", "H800", "GH200", "B200", "GB200", "B300", "GB300")
HELD = 0.8
# The peak in fp32 by that in bf16, from the vendors' data sheets; the first name that fits.
FP32_RATIO = {
    "A100": 1 / 16, "A10G": 1 / 2, "A10": 1 / 4, "A40": 1 / 4, "RTX-": 1 / 4, "RTX": 1 / 2,
    "L40S": 1 / 4, "L40": 1 / 2, "L4": 1 / 4, "T4": 1 / 8, "V100": 1 / 8, "H200": 1 / 16,
    "H20": 1 / 3, "B200": 1 / 28, "B300": 1 / 28, "GB": 1 / 31, "MI2": 1 / 4, "MI3": 1 / 8,
}  # fmt: skip
# name, architecture, GiB, TB/s, TFLOP/s, achievable share; GB/s inside the host, of its NIC, to it.
# The share of the peak that large products reach: measured one at a time (A100), and from H100 on
# four fifths of that, because a whole step holds the power limit (8 x H100 train a 7B model at
# 46.4 %, one H100 an adapter at 40 to 43 %); 0.80 stands where nothing is published (NVIDIA); the
# MI200s from 83 TFLOP/s a device, at which four MI250 train a 7B model (Databricks, 2023).
GPUS = (
    _gpu("V100-SXM2-32GB", "sm_70", 31.7, 0.90, 125, 0.75, 130, 12.5, 12),
    _gpu("V100-SXM2-16GB", "sm_70", 15.8, 0.90, 125, 0.75, 130, 12.5, 12),
    _gpu("A100-SXM-40GB", "sm_80", 39.4, 1.555, 312, 0.87, 250, 12.5, 24),
    _gpu("A100-SXM-80GB", "sm_80", 79.2, 2.00, 312, 0.87, 250, 25, 24),
    _gpu("A100-PCIe-40GB", "sm_80", 39.4, 1.555, 312, 0.78, 20, 12.5, 24),
    _gpu("A100-PCIe-80GB", "sm_80", 79.2, 1.94, 312, 0.81, 20, 12.5, 24),
    _gpu("A800-SXM-80GB", "sm_80", 79.2, 2.00, 312, 0.87, 165, 25, 24),
    _gpu("A10", "sm_86", 22.0, 0.60, 125, 0.56, 20, 3, 24),
    _gpu("A10G", "sm_86", 22.0, 0.60, 70, 0.85, 20, 3, 24),
    _gpu("A30", "sm_80", 23.5, 0.93, 165, 0.80, 20, 12.5, 24),
    _gpu("A40", "sm_86", 44.4, 0.70, 150, 0.80, 20, 12.5, 24),
    _gpu("RTX-A6000", "sm_86", 47.4, 0.77, 155, 0.80, 20, 3, 24),
    _gpu("RTX-A5000", "sm_86", 23.5, 0.77, 111, 0.80, 20, 3, 24),
    _gpu("RTX-6000-Ada", "sm_89", 47.4, 0.96, 364, 0.70, 20, 3, 24),
    _gpu("L4", "sm_89", 22.0, 0.30, 121, 0.50, 20, 3, 24),
    _gpu("L40", "sm_89", 44.4, 0.86, 181, 0.80, 20, 12.5, 24),
    _gpu("L40S", "sm_89", 44.4, 0.86, 362, 0.70, 20, 12.5, 24),
    _gpu("RTX3090", "sm_86", 23.6, 0.936, 71, 0.85, 10, 1.2, 12),
    _gpu("RTX4090", "sm_89", 23.5, 1.01, 165.2, 0.85, 20, 1.2, 24),
    _gpu("RTX5090", "sm_120", 31.3, 1.79, 209.5, 0.85, 40, 1.2, 48),
    _gpu("T4", "sm_75", 14.6, 0.32, 65, 0.60, 10, 3, 12),
    _gpu("H100-SXM", "sm_90", 79.1, 3.35, 989, 0.64, 370, 50, 50),
    _gpu("H100-SXM-96GB", "sm_90", 94.5, 2.40, 900, 0.64, 370, 50, 50),
    _gpu("H100-PCIe", "sm_90", 79.1, 2.00, 756, 0.62, 50, 50, 50),
    _gpu("H100-NVL", "sm_90", 93.1, 3.90, 835, 0.62, 50, 50, 50),
    _gpu("H800-SXM", "sm_90", 79.1, 3.35, 989, 0.64, 165, 50, 50),
    _gpu("H20", "sm_90", 94.5, 4.00, 148, 0.80, 370, 50, 50),
    _gpu("H200", "sm_90", 139.8, 4.80, 989, 0.64, 370, 50, 50),
    _gpu("GH200", "sm_90", 94.5, 4.00, 989, 0.67, 370, 50, 400),
    _gpu("B200", "sm_100", 178.3, 8.00, 2250, 0.62, 750, 50, 50),
    _gpu("GB200", "sm_100", 184.0, 8.00, 2500, 0.58, 750, 50, 400),
    _gpu("B300", "sm_103", 267.0, 8.00, 2250, 0.62, 750, 100, 50),
    _gpu("GB300", "sm_103", 276.0, 8.00, 2500, 0.58, 750, 100, 400),
    _gpu("Gaudi2", "gaudi", 94.0, 2.45, 432, 0.70, 240, 37, 24),
    _gpu("Gaudi3", "gaudi", 126.0, 3.70, 1835, 0.50, 480, 75, 50),
    _gpu("MI210", "gfx90a", 63.98, 1.638, 181, 0.58, 40, 25, 24),
    _gpu("MI250", "gfx90a", 63.98, 1.638, 181, 0.58, 80, 12.5, 24),
    _gpu("MI250X", "gfx90a", 63.98, 1.638, 191.5, 0.55, 80, 12.5, 30),
    _gpu("MI300X", "gfx942", 191.9, 5.30, 1307, 0.45, 300, 50, 50),
    _gpu("MI325X", "gfx942", 255.9, 6.00, 1307, 0.60, 300, 50, 50),
    _gpu("MI355X", "gfx950", 287.9, 8.00, 2500, 0.63, 380, 50, 50),
)
_BY_NAME = {gpu.name.lower(): gpu for gpu in GPUS}

# Device names as drivers and torch report them, most special first.
_PATTERNS = (
    (r"gb300", "GB300"), (r"gb200", "GB200"), (r"gh200", "GH200"), (r"b300", "B300"),
    (r"b200", "B200"), (r"h200", "H200"), (r"h800", "H800-SXM"), (r"h20", "H20"),
    (r"h100.*nvl", "H100-NVL"), (r"h100.*pcie", "H100-PCIe"), (r"h100.*9[46]", "H100-SXM-96GB"),
    (r"h100", "H100-SXM"), (r"a800", "A800-SXM-80GB"), (r"gaudi ?2", "Gaudi2"),
    (r"gaudi ?3", "Gaudi3"), (r"a100.*pcie.*40|a100-pcie-40", "A100-PCIe-40GB"),
    (r"a100.*pcie", "A100-PCIe-80GB"), (r"a100.*40", "A100-SXM-40GB"), (r"a100", "A100-SXM-80GB"),
    (r"v100.*16", "V100-SXM2-16GB"), (r"v100", "V100-SXM2-32GB"), (r"mi355", "MI355X"),
    (r"mi325", "MI325X"), (r"mi300", "MI300X"), (r"mi250x(?!.*mi250\b)", "MI250X"),
    (r"mi250", "MI250"), (r"mi210", "MI210"), (r"l40s", "L40S"), (r"l40\b", "L40"),
    (r"\bl4\b", "L4"), (r"a?6000[ -]ada", "RTX-6000-Ada"), (r"a6000", "RTX-A6000"),
    (r"a5000", "RTX-A5000"), (r"a10g", "A10G"), (r"\ba10\b", "A10"), (r"\ba30\b", "A30"),
    (r"\ba40\b", "A40"), (r"\bt4\b", "T4"), (r"5090", "RTX5090"), (r"4090", "RTX4090"),
    (r"3090", "RTX3090"),
)  # fmt: skip


def find_gpu(name: str, memory: float | None = None) -> Gpu:
    """Return the row of a GPU by our name or by the name that torch reports.

    Args:
        name: such as `A100-SXM-80GB`, `NVIDIA H100 80GB HBM3` or `cpu`.
        memory: bytes that were found on the device, if it was looked at; they replace the
            table's, and a device that the table lacks gets an A10's rates. A `cpu` needs them: the
            share of the host's memory of one rank.

    Raises:
        PlanError: an unknown GPU, or a `cpu`, without memory.
    """
    word = name.strip().lower()
    if word == "cpu":
        return _cpu(memory)
    found = _BY_NAME.get(word)
    if found is None:
        spaced = re.sub(r"[_\s]+", " ", word)
        match = next((row for pattern, row in _PATTERNS if _names(pattern, spaced)), None)
        known = [row.name for row in GPUS]
        if match is None and memory is not None:
            return replace(_BY_NAME["a10"], name=name, memory=memory)
        if match is None:
            hint = did_you_mean(name, known) or f"; known are cpu, {', '.join(known)}"
            raise PlanError(f"there is no GPU '{name}' in the table{hint}")
        found = _BY_NAME[match.lower()]
    return found if memory is None else replace(found, memory=memory)


def _names(pattern: str, text: str) -> bool:
    """Whether the text holds the pattern as a word: A1000 is not an A100."""
    return re.search(rf"(?<![a-z0-9])(?:{pattern})(?![0-9])", text) is not None


def _cpu(memory: float | None) -> Gpu:
    """Return a core of a recent x86 server: 1e11 FLOP/s in fp32, 1.2e10 bytes/s, gloo's links."""
    if memory is None:
        raise PlanError("the device 'cpu' needs a memory size: name a GPU with --gpu instead")
    return Gpu("cpu", "cpu", memory, 1.2e10, 1e11, 8e10, 8e8, 1e9, 1.2e10)
