"""`anyrank plan`: a command line in, an explanation or JSON out; no GPU and no torch needed."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from train.arguments import PIN_KEYS, Parser
from train.config import LoraConfig, parse_pins
from train.errors import ConfigError, ExitCode, FaultError, PlanError, did_you_mean
from train.hosts import hostfile
from train.paths import ROOT, cache_path, calibration_folder
from train.planning.advice import with_advice
from train.planning.calibration import calibrated
from train.planning.cluster import Cluster, cluster_of
from train.planning.explain import explain
from train.planning.families import find_shape
from train.planning.hardware import find_gpu
from train.planning.pins import DIVIDED, OTHERS, read_implementation, read_pins
from train.planning.request import Choice, PlanRequest
from train.planning.search import choose
from train.text import GIB

PATIENCE = 300.0  # seconds; measuring takes under 30, importing torch from a cold disk may add
_CPU_MEMORY = 4.0 * GIB  # of one CPU rank, where no host was looked at
KEYS = (*PIN_KEYS, *OTHERS, *DIVIDED)
LARGEST = 10**9  # of any count: more samples, tokens or GPUs than anyone has


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `anyrank plan`."""
    parser = Parser(
        "anyrank plan",
        "Predict memory and time of every legal plan, choose one and say why.",
        "anyrank plan: ",
    )
    add = parser.add_argument
    add("--hostfile", help="hosts, GPUs and `#:` lines; default: one host")
    add("--num-gpus", type=_whole, metavar="K", help="GPUs of each host")
    add("--num-nodes", type=_whole, metavar="M", help="the first M hosts")
    add("--gpu", metavar="NAME", help="such as A100-SXM-80GB; default: the hostfile's")
    add("--model-name-or-path", "--model_name_or_path", default="mistral-7b", metavar="P",
        help="a folder, a built-in name, or layers=32,hidden=4096,heads=32,…")  # fmt: skip
    add("--batch-size", type=_whole, default=256, metavar="B", help="samples a step")
    add("--block-size", type=_whole, default=1024, metavar="L", help="tokens of a sample")
    add("--precision", default="bf16", choices=("bf16", "fp16", "fp32"))
    add("--use-lora", action="store_true", help="train an adapter, the model frozen")
    add("--lora-r", type=_whole, default=16, metavar="R", help="its rank")
    add("--pin", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="fix a part of the plan: " + " ".join(KEYS))  # fmt: skip
    add("--all", action="store_true", help="show every legal plan")
    add("--json", action="store_true", help="print JSON")
    add("--calibrate", action="store_true", help="first measure this machine (under 30 s)")
    return parser


def _whole(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= LARGEST:
        raise argparse.ArgumentTypeError(
            f"must be a whole number of at least 1, at most {LARGEST}, but is '{text}'"
        )
    return int(text)


def command(argv: Sequence[str]) -> int:
    """Plan for a hostfile's hosts and print; return 0, or 2 where nothing fits.

    Raises:
        UserError: an argument, pin, GPU, model or hostfile that cannot be.
        FaultError: measuring failed.
    """
    calibrations = calibration_folder(cache_path(os.environ))
    words = [word for word in argv if word != "--calibrate"]
    if len(words) < len(argv):
        measure(calibrations)
        if not words:
            return ExitCode.DONE
    parser = build_parser()
    given, unknown = parser.parse_known_args(words)
    if unknown:
        flags = re.findall(r"--[a-z][a-z_-]*", parser.format_help())
        raise ConfigError(
            f"anyrank plan does not know '{unknown[0]}'{did_you_mean(unknown[0], flags)}"
        )
    request = _request(given, calibrations)
    start = perf_counter()
    choice = choose(request)
    seconds = perf_counter() - start
    if given.json:
        print(json.dumps(to_json(with_advice(request, choice), seconds), indent=1))
    else:
        width = shutil.get_terminal_size((0, 0)).columns or None  # 0: no terminal
        print(explain(request, choice, everything=given.all, width=width))
        print(f"\n{len(choice.candidates)} plans in {seconds:.2f} s.")
    return ExitCode.DONE if choice.chosen else ExitCode.USER


def measure(folder: Path) -> None:
    """Measure this machine, in a process of its own, because that needs torch.

    Raises:
        FaultError: it failed or took too long.
    """
    words = [sys.executable, "-m", "train.engine.calibrate", str(folder)]
    try:
        done = subprocess.run(words, cwd=ROOT, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise FaultError(f"measuring took more than {PATIENCE:.0f} s: is a GPU in use?") from None
    if done.returncode:
        raise FaultError(f"measuring failed with exit code {done.returncode}: see above")


def to_json(choice: Choice, seconds: float) -> dict[str, Any]:
    """Return the object that `--json` prints."""
    return {
        "candidates": len(choice.candidates),
        "possible": len(choice.possible),
        "seconds": seconds,
        "chosen": choice.chosen.to_json() if choice.chosen else None,
        "nearest": choice.nearest,
        "rejected": dict(choice.rejected),
        "table": [candidate.to_json() for candidate in choice.candidates],
    }


def _request(given: argparse.Namespace, calibrations: Path) -> PlanRequest:
    words = parse_pins(given.pin, KEYS)
    ours = {key: value for key, value in words.items() if key not in OTHERS}
    others = {key: value for key, value in words.items() if key in OTHERS}
    return PlanRequest(
        shape=find_shape(given.model_name_or_path),
        cluster=_cluster(given, calibrations),
        batch_size=given.batch_size,
        block_size=given.block_size,
        precision=given.precision,
        lora=LoraConfig(given.lora_r, 2 * given.lora_r, 0.0) if given.use_lora else None,
        pins=read_pins(ours),
        implementation=read_implementation(others),
    )


def _cluster(given: argparse.Namespace, calibrations: Path) -> Cluster:
    hosts, hardware = _hosts(given)
    name = given.gpu or hardware.get("gpu")
    if name is None:
        raise PlanError("which GPU? give --gpu, or a line such as '#: gpu=A100-SXM-80GB'")
    memory = _CPU_MEMORY if name == "cpu" else None
    return cluster_of(hosts, hardware, calibrated(find_gpu(name, memory), calibrations))


def _hosts(given: argparse.Namespace) -> tuple[list[tuple[str, int]], Mapping[str, str]]:
    """Return names and GPUs of the hosts to plan for, and the hostfile's words about them."""
    if given.hostfile is None:
        if given.num_gpus is None:
            raise PlanError("how many GPUs? give --num-gpus, or a --hostfile")
        return [(f"node{i + 1}", given.num_gpus) for i in range(given.num_nodes or 1)], {}
    found = hostfile.read(given.hostfile)
    hosts = [(host.name, host.slots) for host in found.hosts]
    if given.num_nodes is not None and given.num_nodes > len(hosts):
        raise PlanError(
            f"--num-nodes is {given.num_nodes}, but the hostfile has {len(hosts)} hosts"
        )
    hosts = hosts[: given.num_nodes]
    if given.num_gpus is None:
        return hosts, found.hardware
    few = [name for name, slots in hosts if slots < given.num_gpus]
    if few:
        raise PlanError(
            f"--num-gpus is {given.num_gpus}, but host '{few[0]}' has fewer slots: "
            "lower it, or raise slots= in the hostfile"
        )
    return [(name, given.num_gpus) for name, _ in hosts], found.hardware
