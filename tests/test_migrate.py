"""docs/migrate.md: what stands on the right is taken, and is what a run answers to their names."""

import re
import shlex
from pathlib import Path

import pytest

from train.arguments import ARGUMENTS, OTHER_NAMES
from train.config import parse_args
from train.config_file import expand
from train.launch.arguments import parse

PAGE = (Path(__file__).resolve().parents[1] / "docs/migrate.md").read_text()
ROWS = re.findall(r"^\| (?!theirs|-)(.+?) \| ?(.*?) ?\|$", PAGE, re.MULTILINE)
OWN = {row.flag.removeprefix("--") for row in ARGUMENTS}
NAMED = {"--model-name-or-path": "m", "--dataset-name-or-path": "d.jsonl"}


@pytest.mark.parametrize("line", [ours.strip("`") for _, ours in ROWS if ours])
def test_every_line_of_ours_is_taken(line):
    words = [word for word in shlex.split(line) if word != "…"]
    if words[0] == "./launch.sh":
        assert parse([word for word in words[1:] if word not in ("--config", "F.yaml")]).gpus == 8
        return
    for flag, value in NAMED.items():
        words += [] if flag in words else [flag, value]
    parse_args(words)


def test_their_file_made_ours_is_taken(tmp_path):
    (text,) = re.findall("```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "ours.yml").write_text(text)
    config = parse_args(expand(["--config", str(tmp_path / "ours.yml")]))
    assert (config.data.batch_size, config.optimizer.lr, config.epochs) == (32, 2e-4, 4)


def their_names(cell):
    """The names of theirs in a cell, as a run looks them up."""
    for quoted in re.findall(r"`(.+?)`", cell):
        if quoted.startswith(("deepspeed", "accelerate", "llamafactory")):
            continue
        found = re.findall(r"--(\w+)" if quoted.startswith("--") else r"^(\w+):", quoted)
        yield from (name.replace("_", "-") for name in found)


@pytest.mark.parametrize("theirs, ours", ROWS)
def test_what_a_run_answers_to_their_name_is_what_stands_here(theirs, ours):
    for name in their_names(theirs):
        meant = OTHER_NAMES.get(name)
        if meant is None:
            assert f"--{name}" in ours if name in OWN else name == "type", name
        elif meant.startswith("nothing"):
            assert not ours
        else:
            flags = re.findall(r"--[a-z][\w-]+", meant)
            assert any(flag in ours for flag in flags), f"{name}: {meant}"


def test_the_page_has_the_three_trainers_and_most_names_that_are_known():
    assert len(ROWS) > 60
    assert {"## axolotl", "## LLaMA-Factory"} <= set(re.findall(r"## [\w-]+", PAGE))
