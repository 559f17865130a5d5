import os
import sys
import threading
from pathlib import Path

import pytest

from train.launch.output import Output, Printer


def test_a_line_of_the_launcher_never_continues_another(capfd: pytest.CaptureFixture[str]) -> None:
    screen = Output(None)
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
        screen = Output(None)
        screen.hold("err", "\r 60%|###")
        screen.release(0.0)
        screen.say("host b is lost")
        shown = b""
        while not shown.endswith(b"\n"):
            shown += os.read(outer, 1000)
        assert shown == b"\r 60%|###\r\x1b[K[launch] host b is lost\r\n"
    os.close(outer)


def test_what_the_launcher_says_is_kept_beside_the_run(tmp_path: Path) -> None:
    log = tmp_path / "launch.log"
    Output(log).say("before there is a run")
    assert not log.exists()
    (tmp_path / "attempts").mkdir()
    Output(log).say("starting again")
    assert (tmp_path / "launch.log").read_text().endswith(" starting again\n")


def test_a_full_disk_ends_no_launcher(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "attempts").mkdir()
    (tmp_path / "launch.log").symlink_to("/dev/full")
    screen = Output(tmp_path / "launch.log")
    screen.say("rank 0 ended")
    screen.say("giving up")
    said = capfd.readouterr().err.splitlines()
    assert [said[0], said[2]] == ["[launch] rank 0 ended", "[launch] giving up"]
    assert "launch.log cannot be written (No space left on device): what follows" in said[1]


def test_the_echo_of_what_has_been_told_goes_to_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "attempts").mkdir()
    screen = Output(tmp_path / "launch.log")
    screen.expect_echo(echoes=True)
    for data in ("step 1\nTraceback (most recent call last):\n  File", "\nConnectionError\n"):
        screen.hold("out", data)
    screen.release(0.0)
    assert capfd.readouterr().out == "step 1\n"
    assert "File\nConnectionError\n" in (tmp_path / "launch.log").read_text()
    screen.expect_echo(echoes=False)
    screen.hold("out", "Traceback (most recent call last)\n")
    screen.release(0.0)
    assert capfd.readouterr().out == "Traceback (most recent call last)\n"


def test_a_console_that_takes_nothing_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    outer, inner = os.pipe()
    with os.fdopen(inner, "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", full)
        printer = Printer(longest=200_000)
        for n in range(400):
            printer.write("out", f"{n:06}".encode() * 1000)
        reader = threading.Thread(target=printer.close)
        reader.start()
        with os.fdopen(outer, "rb") as shown:
            text = b""
            while not text.endswith(b" of output are left out\n"):
                text += shown.read1()
        reader.join()
    kept, _, told = text.partition(b"\n")
    whole = len(kept) // 6000
    assert kept == b"".join(f"{n:06}".encode() * 1000 for n in range(whole))
    assert b"[launch] the console took nothing: " in told and 33 < whole < 60
    assert f"{(400 - whole) * 0.006:.1f} MB".encode() in told
