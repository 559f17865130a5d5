"""`anyrank plan`: a command line in, an explanation or JSON out; no GPU and no torch needed.

Hosts come from whoever calls: `train.launch` reads hostfiles, `python -m train.planning` makes
`--num-nodes` hosts of `--num-gpus` GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any, NoReturn

from train.arguments import PIN_KEYS
from train.config import LoraConfig
from train.errors import AnyrankError, ConfigError, PlanError, did_you_mean
from train.planning.advice import with_advice
from train.planning.explain import explain
from train.planning.families import find_shape
from train.planning.hardware import Cluster, Gpu, cluster_of, find_gpu
from train.planning.pins import KERNELS
from train.planning.request import Choice, Request
from train.planning.search import choose

Hosts = tuple[Sequence[tuple[str, int]], Mapping[str, str]]
ReadHosts = Callable[[str | None], Hosts | None]
Tune = Callable[[Gpu], Gpu]
KEYS = (*PIN_KEYS, *KERNELS)
LARGEST = 10**9  # of any count: more samples, tokens or GPUs than anyone has


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"anyrank plan: {message}")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `anyrank plan`."""
    parser = _Parser(prog="anyrank plan", allow_abbrev=False, description=(
        "Predict memory and time of every legal plan, choose one and say why."))  # fmt: skip
    add = parser.add_argument
    add("--hostfile", help="hosts, GPUs and `#:` lines; default: one host")
    add("--num-gpus", type=_whole, metavar="K", help="GPUs of each host")
    add("--num-nodes", type=_whole, metavar="M", help="the first M hosts")
    add("--gpu", metavar="NAME", help="such as A100-SXM-80GB; default: the hostfile's")
    add("--model-name-or-path", "--model_name_or_path", default="mistral-7b", metavar="P",
        help="a folder, a built-in name, or layers=32,hidden=4096,heads=32,…")  # fmt: skip
    add("--batch-size", type=_whole, default=256, metavar="B", help="samples a step")
    add("--block-size", type=_whole, default=1024, metavar="L", help="tokens of a sample")
    add("--precision", default="bf16", choices=("bf16", "fp32"))
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


def as_in_table(gpu: Gpu) -> Gpu:
    """Return a GPU as the table has it."""
    return gpu


def run(argv: Sequence[str], read_hosts: ReadHosts, tune: Tune = as_in_table) -> int:
    """Plan and print; return 0, or 2 where nothing fits.

    Args:
        argv: the words after `anyrank plan`.
        read_hosts: returns (name, slots) of the hosts and their hardware, or None without a file.
        tune: replaces a GPU's figures by measured ones.

    Raises:
        UserError: an argument, pin, GPU, model or hostfile that cannot be.
    """
    parser = build_parser()
    given, unknown = parser.parse_known_args(list(argv))
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        raise ConfigError(
            f"anyrank plan does not know '{unknown[0]}'{did_you_mean(unknown[0], flags)}"
        )
    request = _request(given, read_hosts, tune)
    start = perf_counter()
    choice = choose(request)
    seconds = perf_counter() - start
    if given.json:
        print(json.dumps(to_json(with_advice(request, choice), seconds), indent=1))
    else:
        print(explain(request, choice, given.all))
        print(f"\n{len(choice.candidates)} plans in {seconds:.2f} s.")
    return 0 if choice.chosen else 2


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


def _request(given: argparse.Namespace, read_hosts: ReadHosts, tune: Tune) -> Request:
    return Request(
        shape=find_shape(given.model_name_or_path),
        cluster=_cluster(given, read_hosts(given.hostfile), tune),
        batch_size=given.batch_size,
        block_size=given.block_size,
        precision=given.precision,
        lora=LoraConfig(given.lora_r, 2 * given.lora_r, 0.0) if given.use_lora else None,
        pins=parse_pins(given.pin),
    )


def _cluster(given: argparse.Namespace, found: Hosts | None, tune: Tune) -> Cluster:
    hosts, hardware = found or ([(f"node{i + 1}", 0) for i in range(given.num_nodes or 1)], {})
    if given.num_nodes is not None:
        if given.num_nodes > len(hosts):
            raise PlanError(
                f"--num-nodes is {given.num_nodes}, but the hostfile has {len(hosts)} hosts"
            )
        hosts = hosts[: given.num_nodes]
    if found is None and given.num_gpus is None:
        raise PlanError("how many GPUs? give --num-gpus, or a --hostfile")
    if given.num_gpus is not None:
        few = [name for name, slots in hosts if found and slots < given.num_gpus]
        if few:
            raise PlanError(
                f"--num-gpus is {given.num_gpus}, but host '{few[0]}' has fewer slots: "
                "lower it, or raise slots= in the hostfile"
            )
        hosts = [(name, given.num_gpus) for name, _ in hosts]
    gpu = given.gpu or hardware.get("gpu")
    if gpu is None:
        raise PlanError("which GPU? give --gpu, or a line such as '#: gpu=A100-SXM-80GB'")
    memory = 4.0 * 2**30 if gpu == "cpu" else None
    return cluster_of(hosts, hardware, tune(find_gpu(gpu, memory)))


def parse_pins(words: Sequence[str]) -> dict[str, str]:
    """Split `key=value` words; the search checks the values.

    Raises:
        ConfigError: not key=value, an unknown key, or a key with two values.
    """
    pins: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        if not value:
            raise ConfigError(f"--pin takes key=value, but is '{word}': for example --pin zero=2")
        if key not in KEYS:
            hint = did_you_mean(key, KEYS) or f"; the keys are {', '.join(KEYS)}"
            raise ConfigError(f"--pin does not know '{key}'{hint}")
        if pins.setdefault(key, value) != value:
            raise ConfigError(f"--pin gives '{key}' twice, as {pins[key]} and as {value}: keep one")
    return pins


def no_hostfile(path: str | None) -> None:
    """Read no hostfile.

    Raises:
        ConfigError: one was named.
    """
    if path is not None:
        raise ConfigError("python -m train.planning reads no hostfile: use anyrank plan")


def main(argv: Sequence[str] | None = None) -> int:
    """Run without hostfiles; print an error in one line and return its exit code."""
    try:
        return run(sys.argv[1:] if argv is None else argv, no_hostfile)
    except AnyrankError as error:
        print(f"[error] {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
