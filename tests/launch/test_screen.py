import os
import sys
from pathlib import Path

import pytest

from train.launch.screen import Screen


def test_a_line_of_the_launcher_never_continues_another(capfd: pytest.CaptureFixture[str]) -> None:
    screen = Screen(None)
    screen.hold("err", " 60%|######    | 24/40")
    screen.release(0.0)
    screen.say("host b is lost")
    screen.say("starting again")
    assert capfd.readouterr().err == (
        " 60%|######    | 24/40\n[launch] host b is lost\n[launch] starting again\n"
    )


def test_on_a_terminal_it_takes_the_place_of_the_progress_bar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outer, inner = os.openpty()
    with os.fdopen(inner, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        screen = Screen(None)
        screen.hold("err", "\r 60%|###")
        screen.release(0.0)
        screen.say("host b is lost")
        assert os.read(outer, 1000) == b"\r 60%|###\r\x1b[K[launch] host b is lost\r\n"
    os.close(outer)


def test_what_the_launcher_says_is_kept_beside_the_run(tmp_path: Path) -> None:
    Screen(tmp_path / "launch.log").say("starting again")
    assert (tmp_path / "launch.log").read_text().endswith(" starting again\n")
