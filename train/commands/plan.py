"""`anyrank plan`: a command line in, an explanation or JSON out; no GPU and no torch needed."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from time import perf_counter
from typing import Any

from train.arguments import Parser, real
from train.command_line import hyphens
from train.commands.plan_request import KEYS, Question, read_question
from train.errors import ConfigError, ExitCode, FaultError, did_you_mean
from train.paths import ROOT, cache_path, calibration_folder, unusable
from train.planning.advice import with_advice
from train.planning.explain import explain
from train.planning.offers import compared, compared_header, describe, offers, spent, told
from train.planning.request import Choice
from train.planning.search import choose
from train.planning.shares import shares_of
from train.text import fitted, terminal_height, terminal_width

PATIENCE = 300.0  # seconds; measuring takes under 30, importing torch from a cold disk may add
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
    add("--model-name-or-path", default="mistral-7b", metavar="P",
        help="a folder, a hub or built-in name, or layers=32,hidden=4096,heads=32,…")  # fmt: skip
    add("--dataset-name-or-path", metavar="D",
        help="plan for its samples and tell the hours; tokenized as for a run")  # fmt: skip
    add("--tokenizer", metavar="T", help="for the dataset; default: the model's")
    add("--samples", type=_whole, metavar="N", help="instead of a dataset: N full samples")
    add("--epochs", type=_whole, metavar="E", help="over the dataset (3) or the samples (1)")
    add("--compare", metavar="GPUxN,…", help="side by side, such as H100x8,A100x8,4090x4")
    add("--price", nargs="+", action="extend", default=[], metavar="GPU=N",
        help="of one GPU for one hour: the cost is told")  # fmt: skip
    add("--batch-size", type=_whole, default=256, metavar="B", help="samples a step")
    add("--block-size", type=_whole, default=1024, metavar="L", help="tokens of a sample")
    add("--precision", default="bf16", choices=("bf16", "fp16", "fp32"))
    add("--use-lora", action="store_true", help="train an adapter, the model frozen")
    add("--quantize", choices=("nf4",), help="the frozen model in 4 bits")
    add("--lora-r", type=_whole, metavar="R", help="its rank (16)")
    add("--lora-alpha", type=_whole, metavar="A", help="as in a run; costs nothing")
    add("--lora-dropout", type=_dropout, metavar="P", help="its mask needs memory")
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


def _dropout(text: str) -> float:
    try:
        return real(0, 0.99)(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def command(argv: Sequence[str]) -> int:
    """Plan for a hostfile's hosts and print; return 0, or 2 where nothing fits.

    Raises:
        UserError: an argument, pin, GPU, model or hostfile that cannot be.
        FaultError: measuring failed.
    """
    calibrations = calibration_folder(cache_path(os.environ))
    words = [hyphens(word) for word in argv if word != "--calibrate"]
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
    question = read_question(given, calibrations, cache_path(os.environ))
    width = terminal_width()
    if given.compare is not None:
        return _compare(question, width, as_json=given.json)
    start = perf_counter()
    choice = choose(question.request)
    seconds = perf_counter() - start
    if given.json:
        print(
            json.dumps(to_json(with_advice(question.request, choice), seconds, question), indent=1)
        )
    else:
        told = _told(question, choice, given.dataset_name_or_path)
        size = {"width": width, "height": terminal_height()}
        print(explain(question.request, choice, everything=given.all, told=told, **size))
        more = "" if given.all else "; --all lists each"
        print(f"\n{len(choice.candidates)} plans in {seconds:.2f} s{more}.")
    return ExitCode.DONE if choice.chosen else ExitCode.USER


def _told(question: Question, choice: Choice, dataset: str | None) -> list[str]:
    """Return what a training takes, and what the plan takes for granted."""
    training, (cluster, price) = question.training, question.clusters[0]
    found = [f"Note: {note}." for note in question.notes]
    if training is not None:
        takes = f": {told(training, choice.chosen, cluster.gpus, price)}" if choice.chosen else ""
        found.append(f"Training: {describe(training, dataset)}{takes}.")
    return found


def _compare(question: Question, width: int | None, *, as_json: bool) -> int:
    """Plan for each cluster and print what the same training takes on it."""
    found = offers(question.request, question.clusters)
    training = question.training
    if as_json:
        rows = [one.to_json(training) for one in found]
        content = {"training": training and asdict(training), "compare": rows}
        print(json.dumps(content, indent=1))
    else:
        lines = [compared_header(question.request, training)]
        lines += [f"Note: {note}." for note in question.notes]
        print("\n\n".join(fitted(line, width) for line in lines))
        print(f"\n{compared(found, training, width)}")
    return ExitCode.DONE if any(one.choice.chosen for one in found) else ExitCode.USER


def measure(folder: Path) -> None:
    """Measure this machine, in a process of its own, because that needs torch.

    Raises:
        FaultError: it failed or took too long.
        ConfigError: what is found could not be kept.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unusable(folder.parent, error) from None
    words = [sys.executable, "-m", "train.engine.calibrate", str(folder)]
    try:
        done = subprocess.run(words, cwd=ROOT, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise FaultError(f"measuring took more than {PATIENCE:.0f} s: is a GPU in use?") from None
    if done.returncode:
        raise FaultError(f"measuring failed with exit code {done.returncode}: see above")


def to_json(choice: Choice, seconds: float, question: Question | None = None) -> dict[str, Any]:
    """Return the object that `--json` prints."""
    found: dict[str, Any] = {
        "candidates": len(choice.candidates),
        "possible": len(choice.possible),
        "seconds": seconds,
        "chosen": choice.chosen.to_json() if choice.chosen else None,
        "nearest": choice.nearest,
        "rejected": dict(choice.rejected),
        "table": [candidate.to_json() for candidate in choice.candidates],
    }
    if question is not None and choice.chosen is not None:
        shares = shares_of(question.request, choice.chosen.plan)
        found |= {"shares": [asdict(share) for share in shares]} if shares else {}
    if question is not None and question.training is not None:
        cluster, price = question.clusters[0]
        takes = spent(question.training, choice.chosen, cluster.gpus, price)
        found["training"] = asdict(question.training) | takes
    if question is not None and question.notes:
        found["notes"] = list(question.notes)
    return found
