"""What the benches share: a run set up as `train/main.py` does, and honest clocks.

Every bench is one command from the repository root, with any interpreter that has the
dependencies: `python bench/<name>.py`. Nothing is downloaded: model and data are the embedded
preset, or random weights of a named shape.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, MistralConfig

from train.config import World, parse_args
from train.data.mix import Dataset
from train.data.preset import build_preset
from train.engine import start as engines
from train.engine.blank import DTYPES
from train.engine.gang import Gang, connect
from train.engine.step import Engine
from train.interfaces import Trainer
from train.launch.stopping import StopRequests
from train.loop import NoSaver, Outputs, TrainingJob, fit
from train.output.console import Console
from train.output.record import StepRecord
from train.paths import cache_folder
from train.run import inputs, session
from train.run.planning import PlannedRun, choose_plan
from train.run.resume import Resumed

QUIET = Console(False)


@dataclass(frozen=True)
class Rig:
    """A run ready to train: what `train.main` has in hand before its sixth stage."""

    source: inputs.RunInputs
    data: Dataset
    gang: Gang
    planned: PlannedRun

    def engine(self, *, packed: bool = True, fused: bool = True) -> Engine:
        """Load the model and wrap it; several engines may live beside one another."""
        plan, zero = self.planned.chosen.plan, dict(self.planned.zero)
        source = self.source
        return engines.start(
            self.gang, source.config, source.model, plan, zero, packed=packed, fused=fused
        )

    def job(self, engine: Engine) -> TrainingJob:
        """What the loop needs to train this engine."""
        return session.training_job(
            self.source, self.data, self.planned, engine, Resumed(NoSaver(), 0, False)
        )


def join() -> Gang:
    """Join the ranks of the launcher, or be the only one; on a CPU with one thread a rank.

    One thread disturbs its neighbours and its own measurement least.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return connect(World.from_env(os.environ), os.environ)


def rig(gang: Gang, words: Sequence[str]) -> Rig:
    """Open data and plan for the command line `words` of `train/main.py`."""
    cache = cache_folder(os.environ)
    source = inputs.locate(parse_args(list(words)), cache, QUIET)
    source, data = inputs.open_data(source, cache, QUIET)
    return Rig(source, data, gang, choose_plan(source, data, gang, QUIET))


def train(engine: Trainer, job: TrainingJob, out: Outputs) -> tuple[StepRecord, ...]:
    """Train to the job's end as a run does, but save nothing and heed no request to stop."""
    return fit(engine, job, out, NoSaver(), StopRequests(World(), sys.exit))


def random_model(folder: Path, precision: str, **sizes: Any) -> Path:
    """Write a Mistral of these sizes with random weights, and the preset's tokenizer, to `folder`.

    On a GPU the weights are drawn there, so that seven billion take seconds.
    """
    tokenizer = build_preset(cache_folder(os.environ)).model
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        config = MistralConfig(**sizes)
        AutoModelForCausalLM.from_config(config, dtype=DTYPES[precision]).save_pretrained(folder)
    for path in tokenizer.iterdir():
        if "token" in path.name:
            shutil.copy(path, folder)
    return folder


def preset_data() -> Path:
    """Return the embedded dataset: functions of the standard library, of ragged lengths."""
    return build_preset(cache_folder(os.environ)).dataset


def clock(act: Callable[[], object]) -> float:
    """Return the wall seconds of `act`, the device's work included."""
    settle()
    began = time.perf_counter()
    act()
    settle()
    return time.perf_counter() - began


def settle() -> None:
    """Wait until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved(
    ways: dict[str, Callable[[int], object]], rounds: int, warm: int = 1
) -> dict[str, list[float]]:
    """Time each way once a round, in turning order, so that a slow minute slows all alike.

    Returns:
        Seconds by way and round; the first `warm` rounds are left out.
    """
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warm + rounds):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            took = clock(lambda name=name, number=number: ways[name](number))  # type: ignore[misc]
            if number >= warm:
                seconds[name].append(took)
    return seconds


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median over rounds of one time over the other."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
