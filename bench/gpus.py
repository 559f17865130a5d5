"""What `./launch.sh`, `anyrank check` and `anyrank smi` say beside GPUs, into docs/gpus.md.

    python -m bench.gpus          as root, on Linux: /sys and /dev are covered in a mount namespace

No GPU is needed: nvidia-smi, the kernel's files of AMD's GPUs and torch/version.py are stand-ins,
so whatever would start a rank on a GPU is left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "gpus.md"
RUN = ("2", "--model-name-or-path", "llama-3.2-1b", "--dataset-name-or-path", "tatsu-lab/alpaca")
CUDA13 = "__version__ = '2.13.0'\ncuda = '13.0'\nhip = None\n"
ROCM = "__version__ = '2.13.0+rocm7.1'\ncuda = None\nhip = '7.1.52802'\n"
HEAD = """# On the GPUs its users have

What the commands print, made by `python -m bench.gpus` with stand-ins for nvidia-smi, for the
kernel's files and for torch's version. A command that would start a rank on a GPU is not shown:
there is none behind the stand-ins.

NVIDIA: torch for CUDA 13 needs driver 580 or newer and a card from Turing (sm_75) on, torch for
CUDA 12 driver 525. Training in bf16 needs Ampere (sm_80) or newer; older cards train with
`--precision fp16`, or fp32. AMD: a torch that is built for ROCm; `./launch.sh` installs one from
`ANYRANK_TORCH_INDEX`.
"""


@dataclass(frozen=True)
class Machine:
    """A machine to stand for: its title, what its tools and files tell, its torch (empty: ours).

    `gpus` are (name, MiB used, MiB in all), `listing` what -L prints besides, `delay` seconds that
    nvidia-smi takes, `nodes` the kernel's versions of AMD's GPUs, `bare` an environment without
    deepspeed.
    """

    title: str
    commands: tuple[tuple[str, ...], ...]
    gpus: tuple[tuple[str, int, int], ...] = ()
    driver: str = "580.95.05"
    listing: str = ""
    delay: int = 0
    nodes: tuple[int, ...] = ()
    torch: str = CUDA13
    env: Mapping[str, str] = field(default_factory=dict)
    bare: bool = False


H100 = ("NVIDIA H100 80GB HBM3", 4, 81559)
SMI, CHECK = ("anyrank", "smi"), ("anyrank", "check", *RUN)
MACHINES = (
    Machine("The driver is too old", (("./launch.sh", "2"), CHECK, SMI), (H100, H100),
            driver="570.124.06"),
    Machine("AMD, and torch is built for CUDA", (("./launch.sh", "2"), CHECK, SMI),
            nodes=(90402,) * 8),
    Machine("AMD, and nothing is installed yet", (("./launch.sh", "2"),), nodes=(90402,) * 8,
            bare=True),
    Machine("AMD with a torch for ROCm", (CHECK, SMI), nodes=(90402,) * 8, torch=ROCM),
    Machine("One of eight GPUs is gone", (("./launch.sh", "8"), CHECK, SMI), (H100,) * 7,
            listing="Unable to determine the device handle for gpu 0000:DB:00.0: Unknown Error"),
    Machine("One GPU, two asked for", (("./launch.sh", "2"), SMI),
            (("NVIDIA GeForce RTX 4090", 1204, 24564),)),
    Machine("A T4", (CHECK, ("anyrank", "check", *RUN, "--precision", "fp16", "--use-lora"), SMI),
            (("Tesla T4", 2, 15360),) * 2),
    Machine("A MIG slice", (("anyrank", "check", "1", *RUN[1:], "--use-lora"), SMI),
            (("NVIDIA A100-SXM4-80GB", 87, 81920),),
            listing="  MIG 2g.20gb     Device  0: (UUID: MIG-8f6a72e1)",
            env={"CUDA_VISIBLE_DEVICES": "MIG-8f6a72e1"}),
    Machine("A laptop's processor with AMD graphics",
            (("./launch.sh", "2", "--dry-run"), ("anyrank", "check"), SMI), nodes=(110003,),
            torch=""),
    Machine("A slow nvidia-smi", (SMI,), (H100, H100), delay=6),
)  # fmt: skip


def stand_in(machine: Machine, folder: Path) -> dict[str, str]:
    """Write the stand-ins into a folder; return the environment that leads to them."""
    (folder / "bin").mkdir()
    if machine.gpus:
        tool = folder / "bin" / "nvidia-smi"
        listed = [f"GPU {n}: {name} (UUID: GPU-{n})" for n, (name, *_) in enumerate(machine.gpus)]
        rows = [f"{name}, {used}, {total}, 0, 71.5, {machine.driver}"
                for name, used, total in machine.gpus]  # fmt: skip
        lines = "\n".join([*listed, *([machine.listing] if machine.listing else [])])
        tool.write_text(
            f"#!/bin/sh\nsleep {machine.delay}\n[ \"$1\" = -L ] && exec cat <<'E'\n{lines}\nE\n"
            "cat <<'E'\n" + "\n".join(rows) + "\nE\n"
        )
        tool.chmod(0o755)
    if machine.torch:
        (folder / "torch").mkdir()
        (folder / "torch/__init__.py").touch()
        (folder / "torch/version.py").write_text(machine.torch)
    here = f"{folder}/bin:" if machine.bare else f"{folder}/bin:{Path(sys.executable).parent}:"
    return {
        **os.environ, "PATH": here + "/usr/local/bin:/usr/bin:/bin", "HOME": str(folder),
        "PYTHONPATH": f"{ROOT}:{folder}", **machine.env,
    }  # fmt: skip


COVERED = """set -e
mount -t tmpfs none /sys/class; mkdir -p "$1/dev"; mount -t tmpfs none "$1/dev"
for n in null zero full random urandom tty; do
  touch "$1/dev/$n"; mount --bind /dev/$n "$1/dev/$n"
done
mkdir "$1/dev/shm" "$1/dev/pts"; ln -s /proc/self/fd "$1/dev/fd"; touch "$1/dev/kfd"
mount -t tmpfs none "$1/dev/shm"; mount --rbind "$1/dev" /dev; n=0
for version in $2; do
  node=/sys/class/kfd/kfd/topology/nodes/$n card=/sys/class/drm/card$n/device
  mkdir -p $node $card
  printf 'simd_count 1216\\ngfx_target_version %s\\n' $version > $node/properties
  echo $4 > $card/mem_info_vram_total; echo 297795584 > $card/mem_info_vram_used
  echo "$3" > $card/product_name; n=$((n + 1))
done
shift 4; exec "$@"
"""


def said(machine: Machine, words: Sequence[str], cwd: Path, env: Mapping[str, str]) -> str:
    """Return a command and what it prints, as a terminal shows them; of a dry run its ranks."""
    program = cwd / "launch.sh" if words[0] == "./launch.sh" else Path(sys.executable)
    module = () if words[0] == "./launch.sh" else ("-P", "-m", "train.cli")
    argv = [str(program), *module, *words[1:]]
    if machine.nodes:
        name, size = ("AMD Instinct MI300X", "206141652992") if machine.nodes[0] == 90402 else (
            "", "536870912")  # fmt: skip
        nodes = " ".join(map(str, machine.nodes))
        argv = ["bash", "-c", COVERED, "-", str(cwd.parent), nodes, name, size, *argv]
    argv = ["unshare", "-m", "-p", "-f", "--mount-proc", *argv]  # others' jobs are not ours to show
    shown = subprocess.run(
        argv, cwd=cwd, env=dict(env), capture_output=True, text=True, timeout=300, check=False
    )
    printed = shown.stdout + shown.stderr
    if "--dry-run" in words:
        told = ("[launch]", "[error]", "[info] Found", "[info] ZeRO")
        printed = "\n".join(line for line in printed.splitlines() if line.startswith(told))
    printed = printed.replace(str(cwd), "anyrank").strip()
    prompt = " ".join(f"'{word}'" if " " in word else word for word in words)
    given = "".join(f"{name}={value} " for name, value in machine.env.items())
    return f"$ {given}{prompt}\n{printed}\n[exit code {shown.returncode}]"


def show(machine: Machine) -> str:
    """Return a section of the page."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = stand_in(machine, folder)
        checkout = folder / "anyrank"
        checkout.mkdir()
        for item in ("launch.sh", "pyproject.toml", "hostfiles", "ds_configs"):
            source = ROOT / item
            (shutil.copytree if source.is_dir() else shutil.copy)(source, checkout / item)
        (checkout / "train").symlink_to(ROOT / "train")
        texts = [said(machine, words, checkout, env) for words in machine.commands]
        return f"## {machine.title}\n\n```\n" + "\n\n".join(texts) + "\n```\n"


def main() -> int:
    """Write the page."""
    TARGET.write_text(HEAD + "\n" + "\n".join(show(machine) for machine in MACHINES))
    print(f"wrote {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
