"""metrics.jsonl as crashes, editors and disks may leave it."""

import json
import random

import pytest

from tests.report.test_report import LOSSES, make_run
from train.errors import ConfigError
from train.output.metrics import read_metrics, rewind_metrics
from train.report.runs import read_runs, verdict
from train.report.tables import as_text, tables


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
