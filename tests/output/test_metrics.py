"""metrics.jsonl as crashes, editors and disks may leave it."""

import json
import random
from dataclasses import asdict

import pytest

from tests.report.test_report import LOSSES, make_run
from train.errors import ConfigError
from train.output.metrics import PHASES, Metrics, read_metrics, rewind_metrics
from train.output.record import RestartRecord, divide_pause
from train.report.runs import read_runs
from train.report.tables import as_text, tables
from train.report.verdict import verdict


def lines_of(tmp_path, *changed):
    """A run's lines, some of them replaced: (number from 0, bytes)."""
    path = make_run(tmp_path / "run", LOSSES, (1,)) / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[: len(LOSSES)]
    for number, line in changed:
        lines[number] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


BROKEN = {
    b'{"step": 2, "lo': "is not JSON",
    b"[1, 2]": "is not an object",
    b'{"step": 2, "loss": "\xff"}': "is not UTF-8",
    b'{"step": 2, "loss": 1.0}': "has no usable 'tokens'",
    b'{"step": -1, "eval_loss": 1.0, "eval_tokens": 1}': "has no usable 'step'",
    b"[" * 100_000: "maximum recursion depth",
}


@pytest.mark.parametrize(("line", "words"), BROKEN.items())
def test_a_broken_line_is_named_and_kept_aside_and_the_others_count(tmp_path, line, words):
    path = lines_of(tmp_path, (1, line))
    found = read_metrics(path)
    assert [step["step"] for step in found.steps] == [1, 3, 4]
    assert f"1 lines do not count: line 2 {words}" in found.notice
    assert found.notice in verdict(read_runs([path.parent]))
    rewind_metrics(path, 3)
    assert (path.parent / "metrics.broken").read_bytes() == line + b"\n"
    assert [step["step"] for step in read_metrics(path).steps] == [1, 3]
    assert read_metrics(path).notice == ""


def test_of_a_step_that_stands_twice_the_last_line_counts_and_the_other_is_kept_aside(tmp_path):
    path = lines_of(tmp_path)
    first = path.read_bytes().split(b"\n")[0]
    again = json.dumps(json.loads(first) | {"loss": 9.0}).encode()
    path.write_bytes(path.read_bytes() + again + b"\n")
    found = read_metrics(path)
    assert [(step["step"], step["loss"]) for step in found.steps][:2] == [(1, 9.0), (2, 2.5)]
    assert "line 1 stands again in line 5" in found.notice
    rewind_metrics(path, 4)
    assert (path.parent / "metrics.broken").read_bytes() == first + b"\n"


def test_a_folder_in_its_place_is_one_sentence_and_none_is_empty(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl").steps == ()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(ConfigError, match="cannot be read .Is a directory.: repair it, or move"):
        rewind_metrics(tmp_path / "metrics.jsonl", 3)


def test_no_mutation_ends_a_report_with_a_traceback(tmp_path):
    path = make_run(tmp_path / "run", LOSSES, (1,)) / "metrics.jsonl"
    whole, dice = path.read_bytes(), random.Random(0)
    odd = [b"\x00", b"\xff", b"\n", b"{", b'"', b"9" * 400, b"NaN", b"null", b"-1", b"1e999", b"[]"]
    for _ in range(300):
        at, length = dice.randrange(len(whole)), dice.choice([0, 1, 5, 60])
        path.write_bytes(whole[:at] + dice.choice(odd) + whole[at + length :])
        try:
            runs = read_runs([path.parent])
        except ConfigError:
            continue
        numbers = [step["step"] for step in runs[0].steps]
        assert len(numbers) == len(set(numbers))
        assert len(numbers) == len(LOSSES) or runs[0].notice
        as_text(tables(runs))


def restart(number: int, step: int, **seconds: float) -> RestartRecord:
    known = dict.fromkeys(("pause", *PHASES)) | seconds
    return RestartRecord(number, step, 0, 9, 2, **known, time=1000.0)


def test_lines_of_starts_are_read_and_stay_when_a_run_goes_on(tmp_path):
    path = lines_of(tmp_path)
    with path.open("a") as file:
        for record in (restart(1, 0), restart(2, 2, pause=3.5, save=0.5), restart(3, 2)):
            file.write(json.dumps(asdict(record)) + "\n")
        file.write(json.dumps(asdict(restart(4, 2, end="x"))) + "\n")
    found = read_metrics(path)
    assert [line["restart"] for line in found.restarts] == [1, 2, 3]
    assert found.restarts[1]["pause"] == 3.5 and len(found.steps) == 4
    assert "has no usable 'end'" in found.notice
    rewind_metrics(path, 1)
    again = read_metrics(path)
    assert (again.restarts, again.broken) == (found.restarts, ())
    kinds = [("restart" in json.loads(line)) for line in path.read_text().splitlines()]
    assert kinds == [True, False, True, True]


def test_steps_of_which_no_line_is_left_are_told():
    found = Metrics(steps=tuple({"step": step} for step in (3, 4, 5)))
    assert found.lacking(4) == "metrics.jsonl lacks 2 of the 4 steps that were made"
    assert Metrics(steps=tuple({"step": step} for step in (1, 2, 9))).lacking(2) == ""


def test_an_evaluation_before_a_run_that_begins_anew_is_made_again(tmp_path):
    """It was another model's, where a start with that one failed before its first checkpoint."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "eval_loss": 9.5, "eval_tokens": 3}\n')
    assert rewind_metrics(path, 1).evals[0]["eval_loss"] == 9.5 and path.read_text() != ""
    assert rewind_metrics(path, 0).evals == () and path.read_text() == ""


def test_a_pause_is_divided_into_what_followed_and_what_waited_took_nothing():
    instants = (10.0, 11.5, 12.0, 4.0, 9.0, 13.0, 14.0, 15.0)  # ranks that began before
    assert divide_pause(instants) == [1.5, 0.5, 0.0, 0.0, 1.0, 1.0, 1.0]
    alone = (10.0, None, None, 14.0, 16.0, 17.0, 18.0, 19.0)
    assert divide_pause(alone) == [None, None, 4.0, 2.0, 1.0, 1.0, 1.0]
    first = (None, None, None, 4.0, 9.0, 13.0, 14.0, 15.0)
    assert divide_pause(first) == [None, None, None, 5.0, 4.0, 1.0, 1.0]
