"""The device of a rank: chosen, refused where torch cannot use it, described for the planner."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, MutableMapping, Sequence

import torch

from train.config import World
from train.errors import ConfigError
from train.hosts import tasks
from train.hosts.probe import gpus_here
from train.planning.cluster import Device
from train.planning.memory import CONTEXT

# Bytes of other processes on a GPU that are not worth a word.
OTHERS = 2**28
# How a user tells torch's allocator what to do; any of them is left as it is.
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
HINT = "run 'python -c \"import torch; torch.cuda.init()\"' to see why"


def choose_device(world: World, env: MutableMapping[str, str]) -> torch.device:
    """Return this rank's GPU, or the processor; either with its share of the host's threads.

    Raises:
        ConfigError: torch cannot use the GPUs that are here, or there are fewer than ranks.
    """
    if "OMP_NUM_THREADS" not in env:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world.local_size))
    if env.get("DS_ACCELERATOR") == "cpu":
        return torch.device("cpu")
    if torch.version.cuda and not any(name in env for name in ALLOCATOR):
        env[ALLOCATOR[0]] = "expandable_segments:True"  # ragged micro-batches fragment fixed ones
    if not torch.cuda.is_available():
        found, error = gpus_here(env)
        if error or found:
            raise ConfigError(error or f"torch cannot start any of the {found} GPUs here: {HINT}")
        return torch.device("cpu")
    own_gpu = tasks.own_device(env, world.local_rank, torch.cuda.device_count())
    if own_gpu is None:
        raise ConfigError(
            f"{world.local_size} ranks were started on a host with {torch.cuda.device_count()} "
            "GPUs: lower --num_gpus, or the host's slots in the hostfile"
        )
    if own_gpu != world.local_rank:  # DeepSpeed takes the GPU of that number
        env["LOCAL_RANK"] = str(own_gpu)
        if "OMPI_COMM_WORLD_LOCAL_RANK" in env:
            env["OMPI_COMM_WORLD_LOCAL_RANK"] = str(own_gpu)
    torch.cuda.set_device(own_gpu)
    properties = torch.cuda.get_device_properties(own_gpu)
    own, made = architecture(properties), torch.cuda.get_arch_list()
    if not has_kernels(own, made):
        raise ConfigError(
            f"torch {torch.__version__} has no kernels for the {properties.name} ({own}), only for "
            f"{', '.join(made)}: install a torch that is built for it (pytorch.org names the index)"
        )
    return torch.device("cuda", own_gpu)


def has_kernels(own: str, made: Sequence[str]) -> bool:
    """Whether a build for these architectures runs on a GPU.

    NVIDIA's kernels run on later ones of the same first number; `compute_` is compiled when needed.
    """
    if not made or own.startswith("gfx"):
        return not made or own in made
    number = int(own.removeprefix("sm_"))
    for name in made:
        kind, _, digits = name.partition("_")
        least = int("".join(filter(str.isdigit, digits)) or 0)
        if least <= number and (kind == "compute" or least // 10 == number // 10):
            return True
    return False


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
