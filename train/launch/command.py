"""From a layout to the `deepspeed` command: pure functions, so that each can be read in a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from train.errors import ConfigError
from train.launch.devices import Devices


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
    return (*deepspeed, *where, "--master_port", str(port), str(script), *args)


def over_ssh(
    deepspeed: Sequence[str], hostfile: Path, master: tuple[str, int], script: Path,
    args: Sequence[str],
) -> tuple[str, ...]:  # fmt: skip
    """Return the command for every slot of a hostfile, by DeepSpeed's own pdsh launcher.

    The master's address is always given: without it DeepSpeed asks the first host by ssh and
    takes whichever address `hostname -I` prints first. --force_multi: a hostfile of one line is
    run on that host, where DeepSpeed would run it here.
    """
    address, port = master
    meeting = ("--force_multi", "--master_addr", address, "--master_port", str(port))
    return (*deepspeed, "--hostfile", str(hostfile), *meeting, str(script), *args)


def environment(env: Mapping[str, str], devices: Devices) -> dict[str, str]:
    """Return the ranks' environment: CPU ranks share the cores, so each gets one thread."""
    threads = {"OMP_NUM_THREADS": "1"} if devices.kind == "cpu" else {}
    return {**threads, **env}
