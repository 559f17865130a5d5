"""Trains families of small models under layouts, and counts what tensor ranks send one another."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from train.config import World, parse_args
from train.engine import start as engines
from train.engine.gang import Gang
from train.engine.step import Engine
from train.launch.stopping import StopRequests
from train.loop import NoSaver, Outputs, TrainingJob, fit
from train.output.console import Console
from train.output.trackers import NoTracker
from train.run import inputs, session
from train.run.planning import choose_plan
from train.run.resume import Resumed

# A large step after clipping, so that a gradient that lacks a part shows in the next losses.
BASE = "--block-size 96 --max-steps 6 --lr 3e-3 --seed 7 --weight-decay 0.1 --max-grad-norm 0.5 "
BASE += "--ds-config ds_configs/auto.json --pin micro_tokens=400 offload=none "
LORA = "--use-lora --lora-dropout 0.2 --lr 5e-3"
SUM = "gloo:all_reduce"


@dataclasses.dataclass(frozen=True)
class Job:
    """A family under a layout: `pins` of it, and other `words`, with which one rank is compared."""

    family: str
    pins: str
    words: str = ""

    @property
    def words_alone(self) -> str:
        """The same on one rank."""
        zero = "zero=1" if "bf16" in self.words else "zero=0"
        return f"{zero} recompute=none {self.full}"

    @property
    def full(self) -> str:
        """The words with a precision and a batch, a prime number of samples."""
        found = "" if "--precision" in self.words else "--precision fp32 "
        found += "" if "--batch-size" in self.words else "--batch-size 13 "
        return found + self.words

    @property
    def name(self) -> str:
        """What a table calls it."""
        return f"{self.family} {self.pins} {self.words}".strip()


def start(gang: Gang, words: str, model: Path, data: Path, out: Path) -> tuple[Engine, TrainingJob]:
    named = f"--model-name-or-path {model} --dataset-name-or-path {data} {BASE} {words}"
    quiet = Console(False)
    source = inputs.locate(parse_args(named.split()), out, quiet)
    source, samples = inputs.open_data(source, out / "cache", quiet)
    planned = choose_plan(source, samples, gang, quiet)
    engine = engines.start(gang, source.config, source.model, planned.plan, dict(planned.zero))
    job = session.training_job(source, samples, planned, engine, Resumed(NoSaver(), 0, False))
    return engine, job


def train(gang: Gang, jobs: Sequence[tuple[str, str, str]], data: Path, out: Path) -> None:
    """Train each (name, family, words); rank 0 writes all their steps, and a loss after them."""
    unasked = StopRequests(World(), sys.exit)
    found = {}
    for name, family, words in jobs:
        engine, job = start(gang, words, out / family, data, out)
        folder = Outputs(Console(False), None, NoTracker(), out)
        records = fit(engine, job, folder, NoSaver(), unasked)
        loss, tokens = engine.evaluate([_batch(job)])
        found[name] = [dataclasses.asdict(one) for one in records]
        told = [engine.next_token(job.train.sample(number)[0]) for number in (0, 1, 2)]
        found[name].append({"loss": loss / tokens, "tokens": tokens, "told": told})
        engine.deepspeed.destroy()
    if gang.world.is_main:
        (out / f"tensor{gang.world.size}.json").write_text(json.dumps(found))


def _batch(job: TrainingJob) -> tuple[object, ...]:
    from train.data.feed import step_batch

    return step_batch(job.train, 7, 5, 0, job.placement).micros


def count(gang: Gang, words: Sequence[str], models: Sequence[str], data: Path, out: Path) -> None:
    """Write the all-reduces of one step with a single micro-batch, by words and model."""
    found = {}
    for one in words:
        for model in models:
            engine, job = start(gang, one, out / model, data, out)
            micros = _batch(job)[:1]
            engine.step(0, micros, 100, 1e-3)
            with torch.profiler.profile() as seen:
                engine.step(1, micros, 100, 1e-3)
            calls = sum(event.count for event in seen.key_averages() if event.key == SUM)
            found[f"{one} {model}"] = calls
            engine.deepspeed.destroy()
    if gang.world.is_main:
        (out / "counted.json").write_text(json.dumps(found))
