"""The run folder as it is written: a line per step, a folder per start, DONE at the end."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from train.checkpoint.folder import FULL, require_newest
from train.errors import ConfigError, FaultError
from train.output.metrics import Metrics, of_rows, rewind_metrics

SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL|AUTH|JWT", re.IGNORECASE)
LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")  # of a URL
TOLD = re.compile(
    r"^(CUDA|NCCL|HIP|ROCR|RCCL|OMP|MKL|GLOO|TORCH|PYTORCH|DS|DEEPSPEED|HF|TRANSFORMERS|SLURM"
    r"|MASTER|WORLD|LOCAL|CROSS|RANK|TOKENIZERS|WANDB)"
)
PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "peft", "numpy", "safetensors")


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step; `step` counts from 1, times are seconds, `time` is since the epoch."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    samples: int
    loss_tokens: int
    tokens: int
    padded_tokens: int
    seconds: float
    tokens_per_s: float
    mfu: float | None
    world_size: int
    plan: str
    sample_hash: str
    peak_bytes: int
    skipped: int
    time: float


@dataclass(frozen=True)
class EvalRecord:
    """One evaluation over the whole split, after `step` steps; `eval_data`: of which rows."""

    step: int
    eval_loss: float
    eval_tokens: int
    eval_data: str = ""


def evaluations(metrics: Metrics, rows: str) -> Iterator[EvalRecord]:
    """Yield a run's evaluations on `rows` (a fingerprint) but for the one before training."""
    for line in of_rows(metrics.evals, rows):
        if line["step"]:
            yield EvalRecord(line["step"], line["eval_loss"], line["eval_tokens"], rows)


@dataclass(frozen=True)
class RestartRecord:
    """A start after another's steps, and what the pause before its first was made of, in seconds.

    `restart` counts the run's starts, `step` the steps before this one, `lost` those that were made
    before and are repeated, `total` all steps. `pause`: from the last step before to the first one
    after. It is made of `save` (until the ranks before left, or their fault was seen), `end` (until
    all were gone), `start` (until these began), `imports` (libraries and data), `join` (and plan),
    `load` (model and checkpoint), `first_step`. None is what is not known, as without a supervisor.
    """

    restart: int
    step: int
    lost: int
    total: int
    world_size: int
    pause: float
    save: float | None
    end: float | None
    start: float | None
    imports: float | None
    join: float | None
    load: float | None
    first_step: float | None
    time: float


def divide_pause(instants: Sequence[float | None]) -> list[float | None]:
    """Return the seconds between following instants, of which some are not known.

    What happened before it was its turn, as imports of ranks that wait, took no time of the pause.
    """
    latest: float | None = None
    seconds: list[float | None] = []
    for instant in instants:
        later = instant if latest is None or instant is None else max(latest, instant)
        seconds.append(None if latest is None or later is None else later - latest)
        latest = latest if later is None else later
    return seconds[1:]


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run and of this start of it; only rank 0 writes to it."""

    path: Path
    attempt: Path

    def write(self, record: StepRecord | EvalRecord | RestartRecord) -> None:
        """Append one line to metrics.jsonl.

        Raises:
            FaultError: a newer start of this run has taken over, or it cannot be written.
            ConfigError: the disk is full.
        """
        require_newest(self.attempt)
        self._append(self.path / "metrics.jsonl", json.dumps(asdict(record)) + "\n")

    def rewind(self, step: int) -> Metrics:
        """Drop what this start will write anew: the lines after `step`, and DONE.

        Returns what metrics.jsonl held.

        Raises:
            ConfigError: metrics.jsonl is not a file that can be read, or the disk is full.
            FaultError: it cannot be written.
        """
        with _writing(self.path / "metrics.jsonl") as file:
            (self.path / "DONE").unlink(missing_ok=True)
            return rewind_metrics(file, step)

    def note(self, name: str, value: Any) -> None:
        """Write one of the attempt's JSON files.

        Raises:
            ConfigError: the disk is full; FaultError: it cannot be written.
        """
        text = json.dumps(value, indent=2, default=str)
        with _writing(self.attempt / name) as file:
            file.write_text(text + "\n", encoding="utf-8")

    def write_text(self, name: str, lines: Sequence[str]) -> None:
        """Write one of the attempt's text files.

        Raises:
            ConfigError: the disk is full; FaultError: it cannot be written.
        """
        text = "".join(f"{line}\n" for line in lines)
        with _writing(self.attempt / name) as file:
            file.write_text(text, encoding="utf-8", errors="replace")

    def log(self, line: str) -> None:
        """Append one line to the attempt's log.txt; `?` for what is no text in a path.

        Raises:
            ConfigError: the disk is full; FaultError: it cannot be written.
        """
        self._append(self.attempt / "log.txt", line + "\n")

    def finish(self) -> None:
        """Write DONE, last.

        Raises:
            ConfigError: the disk is full; FaultError: it cannot be written.
        """
        with _writing(self.path / "DONE") as file:
            file.write_text(time.strftime("%Y-%m-%dT%H:%M:%S%z\n"))

    def _append(self, path: Path, text: str) -> None:
        with _writing(path), path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(text)


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Turn what a disk refuses into one sentence.

    Raises:
        ConfigError: it is full; FaultError: the file cannot be written for another reason.
    """
    try:
        yield path
    except OSError as error:
        said = f"{path} cannot be written ({error.strerror or error})"
        if error.errno not in FULL:
            raise FaultError(said) from None
        raise ConfigError(
            f"{said}: free some space, or give a --run-dir on a larger disk; the same command goes "
            "on from the newest checkpoint"
        ) from None


def open_run_folder(path: Path) -> RunFolder:
    """Make the folder and the next attempt's; from then on no earlier attempt writes to it.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        attempts = path / "attempts"
        attempts.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(p.name) for p in attempts.iterdir() if p.name.isdigit()), default=0)
        attempt = attempts / f"{number:04d}"
        attempt.mkdir()
    except OSError as error:
        raise ConfigError(
            f"the run folder {path} cannot be written ({error.strerror or error}): "
            "give another --run-dir"
        ) from None
    return RunFolder(path, attempt)


def environment(env: Mapping[str, str], hosts: list[str]) -> dict[str, Any]:
    """Describe what ran: the arguments, package versions, hosts, and variables without secrets."""
    told = {
        key: "(redacted)" if SECRET.search(key) else LOGIN.sub("(redacted)", value)
        for key, value in sorted(env.items())
        if TOLD.match(key)
    }
    return {
        "started": time.time(),
        "arguments": sys.argv[1:],
        "packages": {name: _version(name) for name in PACKAGES},
        "hosts": hosts,
        "variables": told,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
