"""From a layout to the `deepspeed` command and its environment: pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from train.errors import ConfigError
from train.hosts.devices import Devices

# What it would say, the supervisor has said; as an error it prints only the whole command line.
QUIET = ("--log_level", "critical")
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
# Each host has its own devices, and the launcher of each host names them to its ranks.
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
        raise ConfigError(
            f"{asked} GPUs were asked for, but this machine has {devices.count} {visible}of kind "
            f"{devices.kind}: ask for at most {devices.count}, or name more hosts with --hostfile"
        )
    return asked or devices.count


def local(
    deepspeed: Sequence[str], ranks: int, devices: Devices, port: int, script: Path,
    args: Sequence[str],
) -> tuple[str, ...]:  # fmt: skip
    """Return the command for `ranks` processes of this machine; no hostfile, so no ssh.

    DeepSpeed drops CUDA_VISIBLE_DEVICES as soon as --num_gpus is given, and would then take GPUs
    that were hidden on purpose: visible devices are named one by one instead.
    """
    if devices.restricted:
        ids = ",".join(str(number) for number in devices.ids[:ranks])
        where = ("--include", f"localhost:{ids}")
    else:
        where = ("--num_gpus", str(ranks))
    return (*deepspeed, *QUIET, *where, "--master_port", str(port), str(script), *args)


def one_of_many(
    deepspeed: Sequence[str], node: int, hostfile: Path, include: str, master: tuple[str, int],
    script: Path, args: Sequence[str],
) -> tuple[str, ...]:  # fmt: skip
    """Return the command that starts the ranks of host number `node`, on that host.

    The master's address is always given: without it DeepSpeed asks the first host by ssh, and
    takes whichever address `hostname -I` prints first.
    """
    address, port = master
    return (
        *deepspeed, *QUIET, "--no_ssh", "--node_rank", str(node), "--hostfile", str(hostfile),
        *(("--include", include) if include else ()),
        "--master_addr", address, "--master_port", str(port), str(script), *args,
    )  # fmt: skip


def include(devices: Sequence[tuple[str, Sequence[int]]]) -> str:
    """Return DeepSpeed's --include for hosts whose visible devices are not simply the first."""
    if all(list(ids) == list(range(len(ids))) for _, ids in devices):
        return ""
    return "@".join(f"{name}:{','.join(map(str, ids))}" for name, ids in devices)


def environment(env: Mapping[str, str], kind: str) -> dict[str, str]:
    """Return what the ranks' environment needs besides: CPU ranks share the cores, a thread each.

    What the user has set is left as it is.
    """
    wanted = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"} if kind == "cpu" else {}
    return {name: value for name, value in wanted.items() if name not in env}


def forwarded(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that other hosts' ranks are given, beyond what DeepSpeed forwards.

    They travel inside the connection, never on a command line; their names are shown, no value is.
    """
    return {
        name: value
        for name, value in sorted(env.items())
        if (name in _NAMES or name.startswith(_PREFIXES)) and not _OWN.fullmatch(name)
    }
