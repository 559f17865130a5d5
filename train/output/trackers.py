"""Where curves go besides metrics.jsonl: TensorBoard or Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.errors import ConfigError
from train.interfaces import MetricLogger


class NoTracker:
    """Takes nothing."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class TensorBoardTracker:
    """Event files in the run folder."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary import Writer

        self._writer: Any = Writer(str(folder / "tensorboard"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of one step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WandbTracker:
    """A Weights & Biases run named as the run folder."""

    def __init__(self, folder: Path) -> None:
        import wandb

        self._run: Any = wandb.init(dir=str(folder), name=folder.name, resume="allow")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of one step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Upload what is pending."""
        self._run.finish()


def open_tracker(kind: str, folder: Path) -> MetricLogger:
    """Return the tracker of `--report-to`.

    Raises:
        ConfigError: its library is not installed.
    """
    try:
        if kind == "tensorboard":
            return TensorBoardTracker(folder)
        if kind == "wandb":
            return WandbTracker(folder)
    except ImportError:
        raise ConfigError(
            f"--report-to {kind} needs the {kind} package: pip install {kind}, or leave it out"
        ) from None
    return NoTracker()
