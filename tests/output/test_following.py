"""How far long work is: a bar on a terminal, lines elsewhere."""

import os
import pty
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import pytest

from train.data.blocks import Progress
from train.output.console import Console
from train.text import shown


def work(pause=0.0):
    for share in (0.25, 0.5, 1.0):
        time.sleep(pause)
        yield Progress("data.jsonl", share, int(1e6 * share))
    return "made"


def test_without_a_terminal_there_are_lines_with_rate_and_time_left(capsys):
    assert Console(True).follow(work(0.05), every=0) == "made"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0].startswith("[info] tokenizing data.jsonl: 25%, ")
    assert all(" tokens/s, 0:0" in line and line.endswith(" left") for line in lines)
    assert Console(True).follow(work()) == "made"  # what is quick is not told
    assert Console(False).follow(work(), every=0) == "made"
    assert capsys.readouterr().out == ""


def on_a_terminal(monkeypatch, pause):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    os.set_blocking(ours, False)
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert Console(True).follow(work(pause), every=0) == "made"
        shown = ""
        with suppress(BlockingIOError):  # all of it is read
            while True:
                shown += os.read(ours, 10000).decode()
    return shown


def test_on_a_terminal_there_is_a_bar(monkeypatch, capsys):
    shown = on_a_terminal(monkeypatch, 0.6)
    assert "tokenizing data.jsonl:" in shown and "100%|" in shown and "tokens/s" in shown
    assert capsys.readouterr().out == ""


def test_a_bar_of_quick_work_is_gone_before_the_next_line(monkeypatch):
    """The next line once stood behind what was left of it."""
    last = on_a_terminal(monkeypatch, 0.0).rsplit("\r", 2)
    assert last[1].strip() == "" and len(last[1]) > 70 and last[2] == ""


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("[info] a line that is as wide as it may be, no more", 1),
        ("[info] there is no validation split, so 1 sample in 20 is kept for evaluation", 2),
        ("[info]     return \x1b[32msome_function(of_a_first, of_a_second, of_a_third)\x1b[0m", 2),
        ("[error] --config f: \n    unknown argument '--base-model': here it is --model-name", 3),
        ("[info] /" + 60 * "x", 2),
    ],
)  # fmt: skip
def test_a_terminals_lines_are_broken_between_words_below_their_beginning(text, lines):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 52))
    with os.fdopen(theirs, "w") as terminal:
        found = shown(text, terminal).split("\n")
    os.close(ours)
    assert len(found) == lines and " ".join("\n".join(found).split()) == " ".join(text.split())
    assert all(line.startswith("    ") for line in found[1:])
    with Path(os.devnull).open() as none:
        assert shown(text, none) == text
