"""docs/data.md: every row on the page gives the sample, or the refusal, that stands under it."""

import re
import shutil
from pathlib import Path

import pytest

from train.arguments import read_columns
from train.data.preview import preview
from train.errors import DataError

PAGE = (Path(__file__).resolve().parents[2] / "docs/data.md").read_text()
SHOWN = re.findall(r"```(json|csv|tsv|txt)([^\n]*)\n(.*?)```\n+```\n(.*?)```", PAGE, re.DOTALL)

REJECTED = "The rejected answer of the first pair"


@pytest.fixture
def made(opened, write, chatml, tmp_path):
    """Return how the sample of a row on the page is shown, or why there is none."""

    def made(kind, how, row):
        tokenizer = tmp_path / "model"
        shutil.copytree(chatml, tokenizer)
        if "base" in how:
            (tokenizer / "chat_template.jinja").unlink()
        named = how.partition("--columns ")[2]
        columns = read_columns(named.strip()) if named else ()
        paired = "dpo" in how
        head, last = ("", row) if kind in ("json", "txt") else row.split("\n", 1)
        rows = [head, last, last] if head else [last, last]
        path = write("\n".join(part.strip("\n") for part in rows) + "\n", f"rows.{kind}")
        path = path.rename(path.with_suffix(".jsonl")) if kind == "json" else path
        try:
            data = opened(path, tokenizer, block_size=2000, columns=columns,
                          objective="dpo" if paired else "sft")  # fmt: skip
        except DataError as error:
            return f"refused: {str(error).partition(': ')[2]}\n"
        samples = data.shown[: 2 if paired else 1]
        assert samples[-1].title == (REJECTED if paired else "The first sample")
        lines = [line for one in samples for line in preview(one.pieces, colour=False)]
        return "\n".join(lines) + "\n"

    return made


@pytest.mark.parametrize("kind, how, row, shown", SHOWN)
def test_each_row_of_the_page_gives_what_stands_under_it(made, kind, how, row, shown):
    assert made(kind, how, row) == shown


def test_the_page_shows_every_format():
    assert len(SHOWN) == len(re.findall(r"```(?:json|csv|tsv|txt)\b", PAGE)) >= 18
    assert {kind for kind, *_ in SHOWN} == {"json", "csv", "tsv", "txt"}
