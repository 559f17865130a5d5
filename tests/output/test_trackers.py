"""Weights & Biases: one run for each run folder; nobody logged in, or no network, is a sentence."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from train.arguments import TRACKERS
from train.errors import ConfigError
from train.output.trackers import _words, open_tracker

OWN = ("tensorboard", "wandb", "none")


class Wandb:
    """A twin of the library: what it is asked to begin, and the errors that it has."""

    def __init__(self, error: str = "") -> None:
        communication = type("CommError", (Exception,), {})
        self.errors = SimpleNamespace(
            CommError=communication,
            AuthenticationError=type("AuthenticationError", (communication,), {}),
            UsageError=type("UsageError", (Exception,), {}),
        )
        self.error = error
        self.begun: list[dict[str, Any]] = []
        self.ended = False

    def teardown(self) -> None:
        self.ended = True

    def init(self, **words: Any) -> SimpleNamespace:
        if self.error and not self.ended:
            raise getattr(self.errors, self.error)("no host\nwhile retrying")
        self.begun.append(words)
        return SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)


def opened(monkeypatch: pytest.MonkeyPatch, wandb: Wandb, folder: Path, **env: str) -> list[str]:
    said: list[str] = []
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    open_tracker("wandb", folder, env, said.append).close()
    return said


def test_every_start_of_a_run_folder_goes_on_in_the_same_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wandb, other = Wandb(), tmp_path / "other"
    other.mkdir()
    for folder in (tmp_path, tmp_path, other):
        opened(monkeypatch, wandb, folder)
    first, second, third = (words["id"] for words in wandb.begun)
    assert first == second != third
    assert all(words["resume"] == "allow" for words in wandb.begun)


def test_a_run_that_starts_over_is_another_run_of_the_tracker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Steps that W&B has had are not taken again; TensorBoard would draw two curves as one."""
    wandb = Wandb()
    opened(monkeypatch, wandb, tmp_path)
    (tmp_path / "tensorboard").mkdir()
    open_tracker("wandb", tmp_path, {}, print, None, "0002")
    first, second = (words["id"] for words in wandb.begun)
    assert first != second
    assert (tmp_path / "wandb-id-before-0002").read_text() == first
    assert (tmp_path / "tensorboard-before-0002").is_dir()


def test_an_id_that_the_user_has_chosen_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wandb = Wandb()
    opened(monkeypatch, wandb, tmp_path, WANDB_RUN_ID="mine")
    assert wandb.begun[0]["id"] == "mine"


@pytest.mark.parametrize("error", ["UsageError", "AuthenticationError"])
def test_without_a_login_it_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: str
) -> None:
    with pytest.raises(ConfigError, match=r"cannot start \(no host\): run 'wandb login', or set"):
        opened(monkeypatch, Wandb(error), tmp_path)


def test_without_a_network_the_curves_are_kept_and_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wandb = Wandb("CommError")
    said = opened(monkeypatch, wandb, tmp_path)
    assert said == ["W&B cannot be reached (no host): the curves are kept for wandb sync"]
    assert wandb.begun[0]["mode"] == "offline"


def test_accelerates_trackers_go_on_in_the_same_run_and_are_told_the_configuration_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from accelerate import tracking

    calls: list[tuple[str, Any]] = []

    class Recorder:
        tracker = SimpleNamespace(info=SimpleNamespace(run_id="given"))

        def __init__(self, *place: Any, **words: Any) -> None:
            calls.append(("made", (place, words)))

        def start(self) -> None:
            calls.append(("started", None))

        def store_init_configuration(self, values: Any) -> None:
            calls.append(("config", values))

        def log(self, values: Any, step: int) -> None:
            calls.append(("log", (step, values)))

        def finish(self) -> None:
            calls.append(("finished", None))

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "mlflow", Recorder)
    config = {"model": {"lora": None, "precision": "bf16"}, "epochs": 3, "pins": ("a",)}
    for _ in range(2):
        tracker = open_tracker("mlflow", tmp_path, {}, print, config)
        tracker.write(4, {"train/loss": 1.5})
        tracker.close()
    name = tmp_path.name
    assert [value for kind, value in calls if kind == "made"] == [
        (("anyrank",), {"run_name": name}),
        (("anyrank",), {"run_name": name, "run_id": "given"}),
    ]
    assert [value for kind, value in calls if kind == "config"] == [
        {"model.precision": "bf16", "epochs": 3, "pins": "('a',)"}
    ]
    assert ("log", (4, {"train/loss": 1.5})) in calls and calls[-1][0] == "finished"


@pytest.mark.parametrize("kind", [one for one in TRACKERS if one not in OWN])
def test_every_tracker_that_is_named_is_one_of_accelerates(kind: str, tmp_path: Path) -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    assert kind in LOGGER_TYPE_TO_CLASS
    place, words = _words(kind, tmp_path, "0" * 32, None)
    LOGGER_TYPE_TO_CLASS[kind](*place, **words)  # takes these words; nothing is started
    with pytest.raises(ConfigError, match=f"--report-to {kind} needs the "):
        open_tracker(kind, tmp_path, {}, print)
