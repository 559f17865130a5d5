"""Where curves go besides metrics.jsonl: TensorBoard, Weights & Biases, or what accelerate knows.

Every start of a run folder goes on in the same run of the tracker, unless the run starts over; the
configuration is sent once, by the first.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from train.errors import ConfigError
from train.interfaces import MetricLogger

PROJECT = "anyrank"  # of the trackers that have such
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

    def __init__(
        self,
        folder: Path,
        env: Mapping[str, str],
        say: Callable[[str], None],
        config: Mapping[str, Any],
    ) -> None:
        import wandb

        first = not (folder / "wandb-id").exists()
        words: dict[str, Any] = {"dir": str(folder), "name": folder.name}
        words["id"] = _run_id(folder, env)
        words |= {"config": dict(config)} if first and config else {}
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


class AccelerateTracker:
    """A tracker of accelerate's, started on the run that an earlier start of the folder has begun.

    Raises:
        ConfigError: its library refuses to start.
    """

    def __init__(self, kind: str, folder: Path, config: Mapping[str, Any]) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        path = folder / f"{kind}-id"
        known = path.read_text(encoding="utf-8") if path.exists() else None
        own = known or secrets.token_hex(16)
        place, words = _words(kind, folder, own, known)
        try:
            self._tracker: Any = LOGGER_TYPE_TO_CLASS[kind](*place, **words)
            self._tracker.start()
        except ImportError:
            raise
        except Exception as error:  # whatever a tracker's library or its server says
            raise ConfigError(
                f"--report-to {kind} cannot start ({_first_line(error)}): set it up as its own "
                "documentation says, or leave it out"
            ) from None
        if known is None:
            if config:
                self._tracker.store_init_configuration(dict(config))
            path.write_text(_begun(kind, self._tracker.tracker) or own, encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of one step."""
        self._tracker.log(dict(values), step=step)

    def close(self) -> None:
        """Send what is pending."""
        self._tracker.finish()


def _words(
    kind: str, folder: Path, own: str, known: str | None
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return how accelerate's tracker is made, so that it goes on where an earlier start was.

    Args:
        own: an id for those that take any; known: that of the run which was begun.
    """
    name, again = folder.name, {} if known is None else {"run_id": known}
    made: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
        "mlflow": ((PROJECT,), {"run_name": name, **again}),
        "trackio": ((PROJECT,), {"name": f"{name}-{own[:8]}", "resume": "allow"}),
        "comet_ml": ((PROJECT,), {"experiment_key": own, "mode": "get_or_create"}),
        "aim": ((name, str(folder)), {"run_hash": known} if known else {}),
        "clearml": ((name,), {"project_name": PROJECT, "continue_last_task": known or False}),
        "dvclive": ((), {"dir": str(folder / "dvclive"), "resume": True}),
        "swanlab": ((PROJECT,), {"experiment_name": name, "id": own[:21], "resume": "allow"}),
    }
    return made[kind]


def _begun(kind: str, run: Any) -> str | None:
    """Return the id that a tracker has given the run itself."""
    ids: dict[str, Callable[[], str]] = {
        "mlflow": lambda: str(run.info.run_id),
        "aim": lambda: str(run.hash),
        "clearml": lambda: str(run.id),
    }
    return ids[kind]() if kind in ids else None


def open_tracker(
    kind: str,
    folder: Path,
    env: Mapping[str, str],
    say: Callable[[str], None],
    config: Mapping[str, Any] | None = None,
    anew: str = "",
) -> MetricLogger:
    """Return the tracker of `--report-to`; `config` is what it is told of the run.

    `anew`: the number of a start by which the run starts over. What is known of the curves so far
    is set aside: trackers would not take earlier steps, or draw two curves as one.

    Raises:
        ConfigError: its library is not installed, or nobody is logged in.
    """
    for path in (*folder.glob("*-id"), folder / "tensorboard", folder / "dvclive") if anew else ():
        if path.exists():
            path.rename(path.with_name(f"{path.name}-before-{anew}"))
    try:
        if kind == "tensorboard":
            return TensorBoardTracker(folder)
        if kind == "wandb":
            return WandbTracker(folder, env, say, flat(config or {}))
        if kind != "none":
            return AccelerateTracker(kind, folder, flat(config or {}))
    except ImportError:
        raise ConfigError(
            f"--report-to {kind} needs the {kind} package: pip install {kind}, or leave it out"
        ) from None
    return NoTracker()


def flat(config: Mapping[str, Any], before: str = "") -> dict[str, str | int | float | bool]:
    """Return a nested configuration with dotted names; what is None is left out."""
    found: dict[str, str | int | float | bool] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{before}{key}.")
        elif value is not None:
            plain = isinstance(value, str | int | float | bool)
            found[f"{before}{key}"] = value if plain else str(value)
    return found


def _run_id(folder: Path, env: Mapping[str, str]) -> str:
    """Return the id of a run folder, chosen at its first start and kept there."""
    path = folder / "wandb-id"
    if not path.exists():
        path.write_text(env.get("WANDB_RUN_ID") or secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
