"""Clusters of GPUs: as a hostfile describes them, or as they were found. Bytes and seconds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path

from train.errors import HostfileError, PlanError, did_you_mean
from train.planning.calibration import calibrated
from train.planning.hardware import Gpu, find_gpu

# The variable that tells ranks what a hostfile says of links.
LINKS = "ANYRANK_LINKS"
# GPUs whose rates are closer than this are taken to be equally fast.
DIFFER = 1.05


@dataclass(frozen=True)
class Cluster:
    """Hosts and what they hold: `sizes` GPUs each, `nic` and `host_memory` of one whole host.

    `gpu` is the slowest, with the memory of the smallest. Where GPUs differ, `each` are all of
    them, in the order of their ranks, and `speeds` what they are worth against the slowest.
    """

    gpu: Gpu
    sizes: tuple[int, ...]
    nic: float
    host_memory: float
    speeds: tuple[float, ...] = ()
    each: tuple[Gpu, ...] = ()

    @cached_property
    def gpus(self) -> int:
        """GPUs of the whole cluster."""
        return sum(self.sizes)

    @cached_property
    def power(self) -> float:
        """How many of the slowest GPU all together are worth."""
        return sum(self.speeds) or float(self.gpus)

    def times(self, factor: int) -> Cluster:
        """Return a cluster of so many times the hosts."""
        return replace(
            self, sizes=self.sizes * factor, speeds=self.speeds * factor, each=self.each * factor
        )

    def all_of(self, gpu: Gpu) -> Cluster:
        """Return it with this GPU in all places."""
        return replace(self, gpu=gpu, speeds=(), each=())

    def with_gpus(self, gpus: Sequence[Gpu]) -> Cluster:
        """Return it with these GPUs, one for each rank; what is not known has no weight."""
        slowest, least = _slowest(gpus), min(gpu.memory for gpu in gpus)
        speeds = tuple(gpu.achievable_flops / slowest.achievable_flops for gpu in gpus)
        known = all(gpu.known or gpu.is_cpu for gpu in gpus)
        weighed = known and max(speeds) > DIFFER
        differ = weighed or max(gpu.memory for gpu in gpus) > DIFFER * least
        return replace(
            self,
            gpu=replace(slowest, memory=least),
            speeds=speeds if weighed else (),
            each=tuple(gpus) if differ else (),
        )

    @cached_property
    def per_host(self) -> int:
        """GPUs of the smallest host, which a collective waits for."""
        return min(self.sizes)


@dataclass(frozen=True)
class Device:
    """One rank's device as it was found: the index of its host, its name, bytes of memory.

    `name` is torch's or the driver's; `memory` is what others leave of it, `busy` what they hold;
    `host_memory` is of its host, all together; `share` is the
    share of a processor's core, where more CPU ranks than cores are on the host. `architecture` is
    the compiler's name for it, where it is known.
    """

    node: int
    name: str
    memory: int
    host_memory: int
    share: float = 1.0
    architecture: str = ""
    busy: int = 0


def links_told(hardware: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that tells ranks of the links in a hostfile's `#:` lines, if any."""
    words = [f"{key}={hardware[key]}" for key in ("nic", "link") if key in hardware]
    return {LINKS: " ".join(words)} if words else {}


def links_of(env: Mapping[str, str]) -> dict[str, str]:
    """Return the `#:` words that this process was told of."""
    return dict(word.split("=", 1) for word in env.get(LINKS, "").split())


def cluster_of_devices(
    devices: Sequence[Device],
    calibrations: Path | None = None,
    links: Mapping[str, str] | None = None,
) -> Cluster:
    """Return what the planner knows of devices that were found, in the order of their ranks.

    The smallest memory and the smallest host stand for all, and so does the slowest device, but for
    what each replica gets.

    Args:
        calibrations: where the rates lie that were measured before, if any were.
        links: `#:` words of the hostfile.
    """
    hosts = [(str(node), len(list(group))) for node, group in groupby(d.node for d in devices)]
    kinds = {device: _gpu_of(device, calibrations) for device in set(devices)}
    gpus = [kinds[device] for device in devices]
    stated = cluster_of(hosts, links or {}, _slowest(gpus))
    if links and "link" in links:
        gpus = [replace(gpu, link=stated.gpu.link) for gpu in gpus]
    found = stated.with_gpus(gpus)
    return replace(found, host_memory=float(min(device.host_memory for device in devices)))


def _slowest(gpus: Sequence[Gpu]) -> Gpu:
    return min(gpus, key=lambda gpu: (gpu.achievable_flops, gpu.memory, gpu.name))


def _gpu_of(device: Device, calibrations: Path | None) -> Gpu:
    gpu = find_gpu(device.name, device.memory, device.architecture)
    if calibrations is not None:
        gpu = calibrated(gpu, calibrations)
    return gpu.scaled(device.share)


def require_bf16(devices: Sequence[Device], precision: str) -> None:
    """Refuse bf16 where a GPU has no tensor cores for it, before anything is loaded.

    Raises:
        PlanError: the GPU is named.
    """
    for device in devices:
        gpu = find_gpu(device.name, device.memory, device.architecture)
        if precision == "bf16" and not gpu.has_bf16:
            raise PlanError(
                f"the {device.name} ({gpu.architecture}) has no bf16, which came with sm_80: "
                "use --precision fp16, or fp32"
            )


def cluster_of(hosts: Sequence[tuple[str, int]], hardware: Mapping[str, str], gpu: Gpu) -> Cluster:
    """Return the cluster of a hostfile's (name, slots) and its `#:` words.

    `hardware` may hold `nic` (`200Gb`: one for each accelerator card; `8x200Gb`: all of a host's),
    `link` (of one GPU inside its host) and `host_memory` (`512GB`); what is missing comes from the
    GPU's row.

    Raises:
        PlanError: no host, or a host without a slot.
        HostfileError: a malformed word.
    """
    sizes = tuple(slots for _, slots in hosts)
    if not sizes or min(sizes) < 1:
        raise PlanError("a plan needs at least one host with at least one GPU")
    for key in hardware:
        if key not in ("gpu", "nic", "link", "host_memory", "memory"):
            raise HostfileError(
                f"a '#:' line has the unknown word '{key}'"
                f"{did_you_mean(key, ('gpu', 'nic', 'link', 'host_memory', 'memory'))}"
            )
    if "link" in hardware:
        gpu = replace(gpu, link=_rate(hardware["link"], "link"))
    if "memory" in hardware:
        gpu = replace(gpu, memory=_rate(hardware["memory"], "memory"))
    nic = _nic(hardware["nic"], gpu, max(sizes)) if "nic" in hardware else gpu.nic * max(sizes)
    default = gpu.memory * max(sizes) * (1.0 if gpu.is_cpu else 2.0)
    memory = hardware.get("host_memory")
    return Cluster(gpu, sizes, nic, _rate(memory, "host_memory") if memory else default)


def _nic(text: str, gpu: Gpu, slots: int) -> float:
    """Return the rate of all NICs of a host; an MI250 card is two slots."""
    cards = slots // 2 if gpu.name.startswith("MI250") and slots > 1 else slots
    return _rate(text, "nic") * (1 if "x" in text else cards)


def _rate(text: str, key: str) -> float:
    """Read `200Gb`, `8x200Gb`, `50GB`, `64GiB` as bytes (per second)."""
    match = re.fullmatch(r"(?:(\d+)x)?(\d+(?:\.\d+)?)(Gb|GB|GiB|TB|TiB|Tb)(?:/s|ps)?", text)
    if match is None or float(match[2]) <= 0:
        raise HostfileError(
            f"'{key}={text}' in a '#:' line is not a size: write for example {key}=200GB"
        )
    unit = {"Gb": 1e9 / 8, "Tb": 1e12 / 8, "GB": 1e9, "TB": 1e12, "GiB": 2**30, "TiB": 2**40}
    return int(match[1] or 1) * float(match[2]) * unit[match[3]]
