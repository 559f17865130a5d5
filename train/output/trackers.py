"""Where curves go besides metrics.jsonl: TensorBoard or Weights & Biases."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from train.errors import ConfigError
from train.interfaces import MetricLogger

_PATIENCE = 30.0  # seconds for W&B to answer


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
    """A Weights & Biases run named as the run folder, the same one for all of its starts.

    Raises:
        ConfigError: nobody is logged in.
    """

    def __init__(self, folder: Path, env: Mapping[str, str], say: Callable[[str], None]) -> None:
        import wandb

        words = {"dir": str(folder), "name": folder.name, "id": _run_id(folder, env)}
        settings = {"init_timeout": _PATIENCE}
        try:
            self._run: Any = wandb.init(**words, resume="allow", settings=settings)
        except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
            raise ConfigError(
                f"--report-to wandb cannot start ({_first_line(error)}): run 'wandb login', or set "
                "WANDB_MODE=offline to keep the curves in the run folder"
            ) from None
        except wandb.errors.CommError as error:
            say(f"W&B cannot be reached ({_first_line(error)}): the curves are kept for wandb sync")
            wandb.teardown()  # or the id is still taken by what has failed
            self._run = wandb.init(**words, mode="offline")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of one step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Upload what is pending."""
        self._run.finish()


def open_tracker(
    kind: str, folder: Path, env: Mapping[str, str], say: Callable[[str], None]
) -> MetricLogger:
    """Return the tracker of `--report-to`.

    Raises:
        ConfigError: its library is not installed, or nobody is logged in.
    """
    try:
        if kind == "tensorboard":
            return TensorBoardTracker(folder)
        if kind == "wandb":
            return WandbTracker(folder, env, say)
    except ImportError:
        raise ConfigError(
            f"--report-to {kind} needs the {kind} package: pip install {kind}, or leave it out"
        ) from None
    return NoTracker()


def _run_id(folder: Path, env: Mapping[str, str]) -> str:
    """Return the id of a run folder, chosen at its first start and kept there."""
    path = folder / "wandb-id"
    if not path.exists():
        path.write_text(env.get("WANDB_RUN_ID") or secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
