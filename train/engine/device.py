"""The device of a rank: chosen, refused where torch cannot use it, described for the planner."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

import torch

from train.config import World
from train.errors import ConfigError
from train.planning.cluster import Device
from train.planning.memory import CONTEXT

# Bytes of other processes on a GPU that are not worth a word.
OTHERS = 2**28


def choose_device(world: World, env: Mapping[str, str]) -> torch.device:
    """Return this rank's GPU, or the processor with its share of the threads.

    Raises:
        ConfigError: there are fewer GPUs here than ranks.
    """
    if torch.cuda.is_available() and env.get("DS_ACCELERATOR") != "cpu":
        if world.local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"{world.local_size} ranks were started on a host with {torch.cuda.device_count()} "
                "GPUs: lower --num_gpus, or the host's slots in the hostfile"
            )
        torch.cuda.set_device(world.local_rank)
        return torch.device("cuda", world.local_rank)
    if "OMP_NUM_THREADS" not in env:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // world.local_size))
    return torch.device("cpu")


def gpu_found(node: int, device: torch.device, host: int) -> Device:
    """Describe a GPU for the planner, less what others hold; `host` is its host's bytes."""
    properties = torch.cuda.get_device_properties(device)
    total = int(properties.total_memory)
    free = settled(lambda: int(torch.cuda.mem_get_info(device)[0]))
    busy = total - free - int(CONTEXT) - torch.cuda.memory_reserved(device)
    busy = busy if busy > OTHERS else 0
    return Device(
        node, properties.name, total - busy, host, architecture=architecture(properties), busy=busy
    )


def architecture(properties: object) -> str:
    """Return the compiler's name of a GPU that torch describes: `sm_90`, `gfx942`."""
    name = str(getattr(properties, "gcnArchName", "")).partition(":")[0]
    if name.startswith("gfx"):
        return name
    return f"sm_{getattr(properties, 'major', 0)}{getattr(properties, 'minor', 0)}"


def settled(read: Callable[[], int], pause: Callable[[float], None] = time.sleep) -> int:
    """Return the free bytes that `read` gives once they grow no more, within 10 s.

    A GPU's memory comes back for a second or so after the processes that held it were killed.
    """
    free = read()
    for _ in range(20):
        pause(0.5)
        newer = read()
        if newer <= free:
            break
        free = newer
    return free
