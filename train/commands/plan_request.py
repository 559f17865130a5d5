"""What `anyrank plan` asks the planner: its command line as a model, hosts and data."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from train.arguments import PIN_KEYS
from train.command_line import parse_pins
from train.config import LoraConfig, parse_args
from train.data.model_folder import model_shape
from train.errors import ConfigError, PlanError
from train.hosts import hostfile
from train.planning.calibration import calibrated
from train.planning.cluster import Cluster, cluster_of
from train.planning.hardware import find_gpu
from train.planning.lengths import lengths_of
from train.planning.offers import Training
from train.planning.pins import DIVIDED, OTHERS, read_implementation, read_pins, refuse_zero3
from train.planning.request import PlanRequest
from train.text import GIB

KEYS = (*PIN_KEYS, *OTHERS, *DIVIDED)
_CPU_MEMORY = 4.0 * GIB  # of one CPU rank, where no host was looked at
_PER_HOST = 8  # GPUs of a host, where nothing says how many


@dataclass(frozen=True)
class Question:
    """What is to be planned: `clusters` with the price of a GPU-hour each, the first in `request`.

    `training`: how long the run is, if that is known; `notes`: what the plan takes for granted.
    """

    request: PlanRequest
    clusters: tuple[tuple[Cluster, float | None], ...]
    training: Training | None
    notes: tuple[str, ...]


def read_question(given: argparse.Namespace, calibrations: Path, cache: Path) -> Question:
    """Return what a command line asks.

    Args:
        calibrations: where the rates lie that were measured before.
        cache: this user's cache folder, where tokenized datasets are kept.

    Raises:
        UserError: an argument, pin, GPU, model, hostfile or dataset that cannot be.
    """
    words = parse_pins(given.pin, KEYS)
    if given.quantize and not given.use_lora:
        raise ConfigError("--quantize keeps the model frozen: give --use-lora as well")
    if given.quantize:
        refuse_zero3(words, given.quantize)
    named = [given.lora_r, given.lora_alpha, given.lora_dropout]
    if named != [None] * 3 and not given.use_lora:
        raise ConfigError("--lora-r, --lora-alpha and --lora-dropout go with --use-lora: give it")
    prices = _prices(given.price)
    asked = list(_clusters(given, calibrations))
    for name in prices.keys() - {name for _, gpus in asked for name in gpus}:
        raise ConfigError(f"--price names {name}, which is not planned for: leave it out")
    clusters = [(cluster, _mean_price(gpus, prices)) for cluster, gpus in asked]
    shape, notes = model_shape(given.model_name_or_path)
    if clusters[0][1] is not None and len(kinds := asked[0][1]) > 1:
        each = " and ".join(f"{count} {name} at {prices[name]:g}" for name, count in kinds.items())
        notes += (f"the cost of a GPU-hour is the mean of {each}",)
    adapter = LoraConfig(given.lora_r or 16, given.lora_alpha or 32, given.lora_dropout or 0.0)
    request = PlanRequest(
        shape=shape,
        cluster=clusters[0][0],
        batch_size=given.batch_size,
        block_size=given.block_size,
        precision=given.precision,
        lora=adapter if given.use_lora else None,
        quantize=given.quantize,
        pins=read_pins({key: value for key, value in words.items() if key not in OTHERS}),
        implementation=read_implementation({k: v for k, v in words.items() if k in OTHERS}),
    )
    if given.dataset_name_or_path is not None:
        if given.samples is not None:
            raise ConfigError("--samples says how many where no dataset is named: keep one of both")
        request, samples = _with_data(request, given, cache)
        training = _training(request, samples, given.epochs or 3)
    elif given.samples is not None:
        training = _training(request, given.samples, given.epochs or 1)
    elif given.epochs is not None:
        raise ConfigError("--epochs of what? give --dataset-name-or-path, or --samples")
    else:
        training = None
    return Question(request, tuple(clusters), training, notes)


def _training(request: PlanRequest, samples: int, epochs: int) -> Training:
    """Return how long a run over so many samples is: an epoch has whole steps only."""
    batch = request.batch_size
    if samples < batch:
        raise ConfigError(
            f"--batch-size {batch} is more than the {samples} samples that there are: lower it"
        )
    steps = samples // batch * epochs
    mean = lengths_of(request.lengths, request.block_size).mean
    return Training(steps, samples * epochs, steps * batch * mean, epochs)


def _with_data(
    request: PlanRequest, given: argparse.Namespace, cache: Path
) -> tuple[PlanRequest, int]:
    """Return the request with the lengths of a dataset, made as for a run, and an epoch's samples.

    Raises:
        UserError: the dataset or the tokenizer is wrong.
    """
    from train.data.mix import lengths_taken
    from train.data.open import open_dataset

    model = given.tokenizer or _tokenizer_of(given.model_name_or_path)
    words = ["--model-name-or-path", model, "--dataset-name-or-path", given.dataset_name_or_path,
             "--block-size", str(given.block_size)]  # fmt: skip
    config = parse_args(words)
    train = open_dataset(config.data, config.model, cache).train
    lengths, share = lengths_taken(train)
    return replace(request, lengths=lengths, loss_fraction=share), train.mixture.places


def _tokenizer_of(model: str) -> str:
    from train.planning.catalog import hub_name

    if "=" in model and not Path(model).exists():
        raise ConfigError(
            "the tokens of a dataset need a tokenizer: give --tokenizer, or --samples"
        )
    return model if Path(model).exists() else hub_name(model) or model


def _prices(words: Sequence[str]) -> dict[str, float]:
    """Read `H100=2.5`: the price of a GPU-hour, by the planner's name of the GPU."""
    found: dict[str, float] = {}
    for word in (part for text in words for part in text.split(",") if part):
        name, equals, value = word.partition("=")
        try:
            price = float(value)
        except ValueError:
            price = -1.0
        if not equals or not 0 <= price < 1e6:
            raise ConfigError(
                f"--price takes GPU=N, the price of one for an hour, but is '{word}': write for "
                "example --price H100=2.5"
            )
        found[find_gpu(name).name] = price
    return found


def _mean_price(gpus: Mapping[str, int], prices: Mapping[str, float]) -> float | None:
    """Return what a GPU-hour costs on average, from the number of GPUs of each kind.

    Raises:
        ConfigError: one kind has a price and another none.
    """
    unknown = [name for name in gpus if name not in prices]
    if len(unknown) == len(gpus):
        return None
    if unknown:
        raise ConfigError(
            f"--price has none for {unknown[0]}, which is planned for as well: give --price "
            f"{unknown[0]}=N"
        )
    return sum(prices[name] * count for name, count in gpus.items()) / sum(gpus.values())


def _clusters(
    given: argparse.Namespace, calibrations: Path
) -> Iterator[tuple[Cluster, Mapping[str, int]]]:
    """Yield what is planned for, each with how many GPUs of which kind it has."""
    if given.compare is None:
        yield _cluster(given, calibrations)
        return
    said = [flag for flag, value in (("--hostfile", given.hostfile), ("--gpu", given.gpu),
                                     ("--num-nodes", given.num_nodes)) if value]  # fmt: skip
    if said:
        raise ConfigError(f"--compare names GPUs and their number itself: leave {said[0]} out")
    for word in filter(None, given.compare.split(",")):
        match = re.fullmatch(r"(.+)x(\d{1,6})", word) or re.fullmatch(r"(?P<n>\d+)x(.+)", word)
        if match is None:
            raise ConfigError(
                f"--compare takes GPUs and their number, but has '{word}': write for example "
                "--compare H100x8,A100x8,4090x4"
            )
        name, count = (match[1], match[2]) if not match.groupdict() else (match[2], match[1])
        yield _offered(name, int(count), given.num_gpus or _PER_HOST, calibrations)


def _offered(
    name: str, count: int, each: int, calibrations: Path
) -> tuple[Cluster, Mapping[str, int]]:
    """Return so many GPUs on hosts of `each`, the last one partly filled if need be."""
    if count < 1:
        raise ConfigError(f"--compare has '{name}x0': write at least 1")
    sizes = [each] * (count // each) + [count % each] * (count % each > 0)
    hosts = [(f"node{number + 1}", size) for number, size in enumerate(sizes)]
    memory = _CPU_MEMORY if name == "cpu" else None
    found = cluster_of(hosts, {}, calibrated(find_gpu(name, memory), calibrations))
    return found, {found.gpu.name: count}


def _cluster(given: argparse.Namespace, calibrations: Path) -> tuple[Cluster, Mapping[str, int]]:
    found = _hosts(given)
    hosts, hardware = [(host.name, host.slots) for host in found.hosts], found.hardware
    clusters: list[Cluster] = []  # as if all hosts were as one of them is
    for host in found.hosts:
        name = given.gpu or host.gpu or hardware.get("gpu")
        if name is None:
            raise PlanError("which GPU? give --gpu, or a line such as '#: gpu=A100-SXM-80GB'")
        own = {"memory": host.memory} if host.memory else {}
        gpu = calibrated(find_gpu(name, _CPU_MEMORY if name == "cpu" else None), calibrations)
        clusters.append(cluster_of(hosts, {**hardware, **own}, gpu))
    gpus = [one.gpu for one, (_, slots) in zip(clusters, hosts, strict=True) for _ in range(slots)]
    whole = clusters[0].with_gpus(gpus)
    # What the slowest needs of its host and network stands for all, as its rates do.
    slowest = next(one for one in clusters if one.gpu.name == whole.gpu.name)
    return slowest.with_gpus(gpus), Counter(gpu.name for gpu in gpus)


def _hosts(given: argparse.Namespace) -> hostfile.Hostfile:
    """Return the hosts to plan for."""
    if given.hostfile is None:
        if given.num_gpus is None:
            raise PlanError("how many GPUs? give --num-gpus, or a --hostfile")
        names = (f"node{number + 1}" for number in range(given.num_nodes or 1))
        return hostfile.Hostfile(tuple(hostfile.Host(name, given.num_gpus) for name in names))
    found = hostfile.read(given.hostfile)
    hosts = found.hosts
    if given.num_nodes is not None and given.num_nodes > len(hosts):
        raise PlanError(
            f"--num-nodes is {given.num_nodes}, but the hostfile has {len(hosts)} hosts"
        )
    hosts = hosts[: given.num_nodes]
    if given.num_gpus is not None:
        few = [host.name for host in hosts if host.slots < given.num_gpus]
        if few:
            raise PlanError(
                f"--num-gpus is {given.num_gpus}, but host '{few[0]}' has fewer slots: "
                "lower it, or raise slots= in the hostfile"
            )
        hosts = tuple(replace(host, slots=given.num_gpus) for host in hosts)
    return replace(found, hosts=hosts)
