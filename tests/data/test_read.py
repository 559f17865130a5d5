import gzip
import json

import pytest

from train.data.read import read_files
from train.data.read_json import rows_of
from train.errors import DataError

ROWS = [{"text": f"hello {number} é"} for number in range(5)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = "text\n" + "".join(row["text"] + "\n" for row in ROWS)


def read_rows(files):
    for block in read_files(files):
        yield from rows_of(block)


def read(path):
    return [row.value for row in read_rows([path])]


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.jsonl", LINES),
        ("a.json", LINES),
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps(ROWS, indent=2)),
        ("a.csv", CSV),
        ("a.tsv", CSV),
        ("a.txt", "".join(row["text"] + "\n" for row in ROWS)),
        ("a.jsonl", json.dumps(ROWS, indent=2)),
        ("a.jsonl", "\n".join(json.dumps(row, indent=2) for row in ROWS)),
        ("a.json", json.dumps({"data": ROWS}, indent=2)),
        ("a.json", json.dumps({"version": 1, "examples": ROWS})),
        ("a.json", json.dumps({"rows": [{"number": 1, "row": row} for row in ROWS]})),
        ("a.jsonl", "\n".join(json.dumps({"number": 1, "row": row}) for row in ROWS)),
        ("a.json", json.dumps({"data": {"rows": ROWS}})),
    ],
)
@pytest.mark.parametrize("change", ["plain", "mark", "carriage returns", "gz", "no last newline"])
def test_every_text_format_is_read_however_it_was_saved(write, name, content, change):
    data = content.encode()
    if change == "carriage returns":
        data = data.replace(b"\n", b"\r\n")
    if change == "mark":
        data = b"\xef\xbb\xbf" + data
    if change == "no last newline":
        data = data.rstrip(b"\n")
    if change == "gz":
        data, name = gzip.compress(data, mtime=0), name + ".gz"
    assert read(write(data, name)) == ROWS


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("between", [",", ";", "\t"])
def test_columns_are_separated_by_what_separates_the_header(write, name, between):
    path = write(between.join(("a", "b")) + "\n" + between.join(('"1,2;\t"', "3")), name)
    assert read(path) == [{"a": "1,2;\t", "b": "3"}]


def test_lists_in_several_objects_are_each_one_rows(write):
    """As axolotl's segments, of which some carry no loss: read apart, all of them would."""
    rows = [{"segments": [{"label": True, "text": f"{n}"}, {"text": "b"}]} for n in range(3)]
    assert read(write(rows)) == rows
    assert read(write("\n\n".join(json.dumps(row, indent=1) for row in rows))) == rows


def test_rows_within_an_object_have_a_place_and_tell_what_stands_beside(write):
    (row,) = read_rows([write('{"version": 1, "data": [{"text": "a"}]}', "a.json")])
    assert row.place.endswith("a.json, line 1, row 1 of 'data'") and row.beside == ("version",)
    talk = [{"id": 1, "talk": [{"role": "user", "content": "a"}]}]
    assert read(write(talk)) == talk


def test_a_tables_keys_that_hold_nothing_are_left_out_within_a_column(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"a": [{"x": 1}, {"y": 2}], "b": None}, {"a": None, "b": "c"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == rows


def test_parquet_is_read_by_rows(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    messages = [{"messages": [{"role": "user", "content": "a"}]}]
    parquet.write_table(pyarrow.Table.from_pylist(messages), path)
    assert read(path) == messages
    assert next(read_rows([path])).place == f"{path}, row 1"


def test_blank_lines_are_no_samples(write):
    assert len(read(write("a\n\n  \nb\n", "a.txt"))) == 2
    assert len(read(write('{"text": "a"}\n\n{"text": "b"}\n\n'))) == 2


def test_csv_fields_may_hold_lines_quotes_and_a_hundred_thousand_words(write):
    long = "word " * 100_000
    path = write(f'text,note\n"a\n""b""",1\n"{long}",2\n', "a.csv")
    assert read(path) == [{"text": 'a\n"b"', "note": "1"}, {"text": long, "note": "2"}]
    assert [row.place for row in read_rows([path])] == [f"{path}, line 2", f"{path}, line 4"]


@pytest.mark.parametrize(
    "name, content, line, words",
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', 2, "is not a JSON object"),
        ("a.jsonl", b'{"text": "a"}\n[1, 2]\n', 2, "is not a JSON object, but [1, 2] instead"),
        ("a.jsonl", b'{"text": "a"}\n"b"\n', 2, "is not a JSON object"),
        ("a.jsonl", b'{"text": "a", "b": [{"c": 1, "c": 2}]}\n', 1, "the key c stands twice"),
        ("a.jsonl", b'\n{"text": "\xff"}\n', 2, "not valid UTF-8 (byte 0xff)"),
        ("a.jsonl", b'{"a":' + b"[" * 100_000 + b"\n", 1, "is not a JSON object"),
        ("a.json", b'[{"text": "a"},\n\n 7]', 3, "is not a JSON object, but 7 instead"),
        ("a.txt", b"good\nb\xe9d\n", 2, "not valid UTF-8 (byte 0xe9)"),
        ("a.csv", b"a,b\n1,2\n3\n", 3, "has 1 fields, but the header has 2"),
        ("a.csv", b"a,b\n1,\xff\n", 2, "not valid UTF-8"),
        ("a.csv", b'a,b\n1,2\n"3,4\n', 3, "is not a CSV row"),
    ],
)
def test_a_malformed_row_has_a_file_a_line_and_a_reason(write, name, content, line, words):
    path = write(content, name)
    (bad,) = [row for row in read_rows([path]) if row.value is None]
    assert bad.place == f"{path}, line {line}"
    assert words in bad.problem


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.json", b'[{"text": "a"},\n {"text": }]', "line 2 is not a JSON value"),
        ("a.json", b'[{"text": "a"}\n {"text": "b"}]', "line 1 is not a JSON value"),
        ("a.json", b'[{"text": "a"},\n', "line 1|line 2"),
        ("a.json", b'[\n{"text": "\xff"}]', "line 2 is not valid UTF-8"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "line 1 is not a JSON value"),
        (
            "a.jsonl",
            b'[\n{"text": "a"}\n]\n[{"text": "b"}]',
            "line 4 follows the end of a JSON arr",
        ),
        ("a.jsonl", b'{\n"text": "a"\n}\n{\n"text"\n}\n', "line 6 is not a JSON value"),
        (
            "a.json",
            b'{"train": [{"text": "a"}], "test": [{"text": "a"}]}',
            "lists of rows train, te",
        ),
        (
            "a.json",
            b'{"0": {"text": "a"}, "1": {"text": "b"}}',
            "a row under each of the keys 0, 1",
        ),
        ("a.json", b'{"text": {"0": "a", "1": "b"}}', "line 1 holds columns, not rows"),
        ("a.json", b'{"prompt": ["a", "b"], "answer": ["c", "d"]}', "orient='records'"),
        ("a.txt", b'{"text": "a"}\n', "line 1 is a row of JSON, not a text: name the file .jsonl"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer, not the"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "run 'git lfs pull'"),
        ("a.csv", b'a,b\n1,2\n"3,4\n5,6\n7,8\n', "line 3 opens a quote that swallows the 2 lines"),
        ("a.csv", b"a,b,a\n1,2,3\n", "names the column a twice"),
        ("a.csv", "text\na\n".encode("utf-16"), "line 1 is not valid UTF-8: save the"),
        ("a.jsonl.gz", b"not gzip", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "hello"}\n' * 99, mtime=0)[:-9], "cannot be read"),
        ("a.jsonl.gz", b"\x1f\x8b\x08" + 7 * b"\x00" + 40 * b"\xff", "cannot be read"),
        ("a.parquet", b"not parquet", "is not a Parquet file"),
    ],
)
def test_a_file_that_breaks_off_is_named(write, name, content, words):
    path = write(content, name)
    with pytest.raises(DataError, match=words) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_parquet_value_that_no_text_or_date_can_be_is_named(tmp_path):
    import pyarrow
    from pyarrow import parquet

    broken = pyarrow.array([b"\xff"]).view(pyarrow.string())
    far = pyarrow.array([2**60]).view(pyarrow.timestamp("ms"))
    for number, column in enumerate((broken, far)):
        path = tmp_path / f"{number}.parquet"
        parquet.write_table(pyarrow.table({"text": column}), path)
        with pytest.raises(DataError, match="a value after row 0 that cannot be read"):
            read(path)
