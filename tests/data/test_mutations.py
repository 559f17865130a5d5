"""Some tens of hurt files; `python -m tests.data.mutations` judges as many as one likes."""

import pyarrow
import pytest
from pyarrow import parquet

from tests.data.mutations import KINDS, cases, judge
from train.errors import DataError


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["pieces", "chatml"])
def test_a_hurt_file_is_read_with_its_bad_rows_told_or_refused(request, tmp_path, name, kind):
    tokenizer = request.getfixturevalue(name)
    found = [
        judge(path, tokenizer, number % 2 == 0, tmp_path / "cache")
        for number, path in enumerate(cases(7, 8, tmp_path, (kind,)))
    ]
    assert [verdict.said for verdict in found if verdict.kind == "fault"] == []
    assert len(found) == 8


def test_some_hurt_files_are_read_and_some_refused(tmp_path, pieces):
    found = [judge(path, pieces, True, tmp_path) for path in cases(3, 6, tmp_path, KINDS[:2])]
    assert {verdict.kind for verdict in found} == {"read", "refused"}


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.json", b'{\xed\xa0\x80\n"text": "a"}', "is not valid UTF-8"),
        ("a.json", b'{"tra\\ud800": [{"a": 1}], "test": [{"a": 1}]}', r"of rows tra\\ud800, test"),
        ("a.jsonl", b'{"t\\ud800": "a"}\n' * 3, r"found t\\ud800"),
        ("a.jsonl", b'{"' + b"t" * 9000 + b'": "a"}\n' * 3, r"found t{37}\.\.\., but"),
    ],
)  # fmt: skip
def test_what_no_terminal_can_hold_is_spelt_and_cut(opened, write, pieces, name, content, words):
    with pytest.raises(DataError, match=words) as caught:
        opened(write(content, name), pieces)
    assert len(str(caught.value)) < 600 and str(caught.value).isprintable()


def test_a_damaged_parquet_file_is_one_sentence(opened, tmp_path, pieces):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"text": "a"}] * 9), path)
    content = path.read_bytes()
    for at in range(len(content) - 300, len(content) - 8, 7):
        path.write_bytes(content[:at] + b"\xff\x0f\x01" + content[at + 3 :])
        try:
            opened(path, pieces)
        except DataError as error:
            assert "\n" not in str(error) and "a.parquet" in str(error)
