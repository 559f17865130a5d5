"""One GPU as the planner sees it, found by the name, architecture and memory that a driver tells.

Bytes, bytes per second and FLOP per second. Memory is what torch can see of a device, a little
under what is printed on the box. The figures are in `train.planning.gpus`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from train.errors import PlanError, did_you_mean
from train.planning.gpus import ROWS, GpuRow
from train.text import GIB

TERA = 1e12
GIGA = 1e9


@dataclass(frozen=True)
class Gpu:
    """One device: memory, memory bandwidth, peak and achievable rates, links in one direction.

    `architecture` is the compiler's name for it: sm_80, gfx942. `power_limited_fraction` is the
    share of a single product's rate that a whole step keeps under the power limit (in
    `achievable_flops` already), `fp32_ratio` the share of the peak that products in fp32 reach,
    which run outside of the tensor cores. `known`: the peak is a data sheet's; `assumed` says whose
    rates stand for those that are not known.
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
    known: bool = True
    assumed: str = ""

    @property
    def is_cpu(self) -> bool:
        """Whether this is a share of a processor rather than a GPU."""
        return self.name.startswith("cpu")

    @property
    def has_bf16(self) -> bool:
        """Whether it has tensor cores for bf16: NVIDIA's have them from Ampere on."""
        return not self.architecture.startswith("sm_") or int(self.architecture[3:]) >= 80

    def scaled(self, share: float) -> Gpu:
        """Return it slowed to a share of itself, as where more CPU ranks than cores are."""
        return replace(
            self,
            bandwidth=self.bandwidth * share,
            peak=self.peak * share,
            achievable_flops=self.achievable_flops * share,
        )


def _gpu(row: GpuRow) -> Gpu:
    held = HELD if row.name.startswith(POWER_LIMITED) else 1.0
    return Gpu(
        row.name, row.architecture, row.gib * GIB, row.bandwidth * TERA, row.peak * TERA,
        row.peak * row.share * TERA, row.link * GIGA, row.nic * GIGA, row.host_link * GIGA,
        held, row.fp32 / row.peak,
    )  # fmt: skip


POWER_LIMITED = ("H100", "H200", "H800", "GH200", "B100", "B200", "GB200", "B300", "GB300")
HELD = 0.8
GPUS = tuple(_gpu(row) for row in ROWS)
_BY_NAME = {gpu.name.lower(): gpu for gpu in GPUS}
# Of a desktop card's rates, what the laptop's of its name has: 0.52 (RTX 4090) to 0.96 (RTX 4060)
# by NVIDIA's tables, by the power that a laptop allows.
LAPTOP = 0.65
LAPTOPS = r"laptop|mobile|max q(?! workstation)"
# Slices of a card's units that MIG hands out.
SLICES = {"sm_120": 4, "A30": 4}
# A device that says no more than its architecture is a card of the table whose memory is so near.
SAME_MEMORY = 1.15


def find_gpu(name: str, memory: float | None = None, architecture: str = "") -> Gpu:
    """Return the row of a GPU by our name or by the name that torch or a driver reports.

    Args:
        name: such as `A100-SXM-80GB`, `NVIDIA H100 80GB HBM3` or `cpu`.
        memory: bytes that were found on the device, if it was looked at; they replace the
            table's, and a device that the table lacks gets the rates of the card of its
            architecture whose memory is nearest, or an A10's. A `cpu` needs them: the share of
            the host's memory of one rank.
        architecture: as compilers call it (`sm_90`, `gfx942`), if known: some images of AMD's call
            every device `AMD Radeon Graphics`.

    Raises:
        PlanError: an unknown GPU, or a `cpu`, without memory.
    """
    word = name.strip().lower()
    if word == "cpu":
        return _cpu(memory)
    spaced = re.sub(r"[-_\s]+", " ", word)
    found = _BY_NAME.get(word) or _named(spaced)
    if found is None and re.match(r"\d{4}(?!\d)", spaced):  # 4090, as people say it
        found = _named(f"rtx {spaced}")
    if found is None and memory is not None:
        found = _nearest(name, memory, architecture.partition(":")[0])
    if found is None:
        known = [row.name for row in GPUS]
        hint = (
            did_you_mean(re.sub(r"(?<=\d)[oO]", "0", name), known)
            or f"; known are cpu, {', '.join(known)}"
        )
        raise PlanError(f"there is no GPU '{name}' in the table{hint}")
    return found if memory is None else replace(found, memory=memory)


def _named(text: str) -> Gpu | None:
    """Return the first row whose pattern is whole words of the text: A1000 is no A100."""
    card, _, mig = text.partition(" mig ")
    for gpu, row in zip(GPUS, ROWS, strict=True):
        if re.search(rf"(?<![a-z0-9])(?:{row.pattern})(?![a-z0-9])", card):
            if part := re.match(r"(?:\d+c\.)?(\d+)g\.(\d+)gb", mig):
                return _slice(gpu, int(part[1]), int(part[2]))
            return _laptop(gpu) if re.search(LAPTOPS, card) else gpu
    return None


def _laptop(gpu: Gpu) -> Gpu:
    slow, assumed = gpu.scaled(LAPTOP), f"{LAPTOP:.2f} of the desktop card's"
    return replace(slow, name=f"{gpu.name}-Laptop", assumed=assumed, known=False)


def _slice(gpu: Gpu, units: int, size: int) -> Gpu:
    """Return a MIG slice of so many units and GB: it reaches other devices through the host."""
    slices = SLICES.get(gpu.architecture) or SLICES.get(gpu.name, 7)
    part, share = units / slices, min(1.0, size * GIGA / gpu.memory)
    return replace(
        gpu.scaled(part), name=f"{gpu.name}-MIG-{units}g.{size}gb", memory=gpu.memory * share,
        bandwidth=gpu.bandwidth * share, link=gpu.host_link / 2,
    )  # fmt: skip


def _nearest(name: str, memory: float, architecture: str) -> Gpu:
    """Return a device that no pattern fits: one of the table by its architecture, or assumed."""
    alike = [gpu for gpu in GPUS if gpu.architecture == architecture]
    if not alike:
        alike = [_BY_NAME["a10"]]
    ratios = {gpu.name: max(gpu.memory / memory, memory / gpu.memory) for gpu in reversed(alike)}
    found = _BY_NAME[min(ratios, key=lambda each: ratios[each]).lower()]
    if found.architecture == architecture and ratios[found.name] < SAME_MEMORY and _mute(name):
        return found
    known = architecture or found.architecture
    return replace(
        found, name=name, architecture=known, assumed=f"those of {found.name}", known=False
    )


def _mute(name: str) -> bool:
    """Whether a name says nothing but the vendor's."""
    return name.strip().lower() in ("amd radeon graphics", "amd gpu", "nvidia graphics device", "")


def _cpu(memory: float | None) -> Gpu:
    """Return a core of a recent x86 server: 1e11 FLOP/s in fp32, 1.2e10 bytes/s, gloo's links."""
    if memory is None:
        raise PlanError("the device 'cpu' needs a memory size: name a GPU with --gpu instead")
    return Gpu("cpu", "cpu", memory, 1.2e10, 1e11, 8e10, 8e8, 1e9, 1.2e10, known=False)
