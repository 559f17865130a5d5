"""How many ranks a machine runs, and their environment: pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from train.errors import ConfigError
from train.hosts.devices import Devices

# What other hosts' ranks are given of this machine's variables.
_PREFIXES = (
    "ACCELERATE_", "AMD_", "AWS_", "AZURE_", "CUBLAS_", "CUDA_", "CUDNN_", "DEEPSPEED_", "DS_",
    "FI_", "FLASH_", "GLOO_", "GOOGLE_", "HF_", "HIP_", "HSA_", "HUGGING", "KMP_", "MIOPEN_",
    "MKL_", "MLFLOW_", "NCCL_", "NVIDIA_", "NVTE_", "OMP_", "PYTHON", "PYTORCH_", "RCCL_",
    "ROCM_", "S3_", "SAFETENSORS_", "TENSORBOARD_", "TOKENIZERS_", "TORCH", "TRANSFORMERS_",
    "TRITON_", "UCX_", "WANDB_", "XDG_CACHE_",
)  # fmt: skip
_NAMES = (
    "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LD_PRELOAD", "PATH", "TMPDIR", "HTTP_PROXY",
    "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
)  # fmt: skip
_MOST_CPU_RANKS = 64
# Each host has its own devices, and Python its own folders.
_OWN = re.compile(r"(CUDA|HIP|ROCR|NVIDIA)_VISIBLE_DEVICES|PYTHONPATH|PYTHONHOME")


def choose(asked: int | None, devices: Devices, cores: int) -> int:
    """Return the number of ranks for one machine: all its GPUs, or at most two CPU ranks.

    Raises:
        ConfigError: more GPUs asked for than this machine has.
    """
    if devices.kind == "cpu":
        return asked or min(2, cores)
    if asked is not None and asked > devices.count:
        visible = "visible " if devices.restricted else ""
        variable = "CUDA_VISIBLE_DEVICES" if devices.kind == "nvidia" else "HIP_VISIBLE_DEVICES"
        raise ConfigError(
            f"{asked} GPUs were asked for, but this machine has {devices.count} {visible}of kind "
            f"{devices.kind}: run './launch.sh {devices.count}', name more hosts with --hostfile, "
            f"or set {variable}= for {asked} CPU ranks"
        )
    return asked or devices.count


def room(devices: Devices) -> int:
    """Return how many ranks one machine can be asked for: its GPUs, or many CPU ranks."""
    return devices.count if devices.kind != "cpu" else _MOST_CPU_RANKS


def visible(
    kind: str, gpus: Sequence[int], *, restricted: bool, chosen: bool = False
) -> dict[str, str]:
    """Return the variables that leave a host's GPUs, where others stand among them.

    Args:
        chosen: they are those that nobody else uses; else those that torch is built for.
    """
    if kind == "nvidia" and chosen:  # by the numbers of nvidia-smi
        return {
            "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        }
    if kind != "amd" or restricted or list(gpus) == list(range(len(gpus))):
        return {}
    return {"HIP_VISIBLE_DEVICES": ",".join(map(str, gpus))}


def rendezvous(address: str, port: int, ranks: int) -> dict[str, str]:
    """Return how `ranks` processes find each other, as torch names it.

    GPUs are not named: rank i of a host takes the i-th that CUDA_VISIBLE_DEVICES leaves visible.
    """
    return {"MASTER_ADDR": address, "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}


def environment(env: Mapping[str, str], kind: str) -> dict[str, str]:
    """Return what the ranks' environment needs besides: CPU ranks share the cores, a thread each.

    No Python that is started imports a json.py of the working folder. What the user has set is left
    as it is.
    """
    wanted = {"PYTHONSAFEPATH": "1"}
    if kind == "cpu":
        wanted |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return {name: value for name, value in wanted.items() if name not in env}


def forwarded(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that other hosts' ranks are given.

    They travel inside the connection, never on a command line; their names are shown, no value is.
    """
    return {
        name: value
        for name, value in sorted(env.items())
        if (name in _NAMES or name.startswith(_PREFIXES)) and not _OWN.fullmatch(name)
    }
