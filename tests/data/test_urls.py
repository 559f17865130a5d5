"""What fsspec opens is copied once and read like any file."""

import zipfile

import pytest

from train.errors import DataError

ROWS = "".join(f'{{"text": "hello world {n}"}}\n' for n in range(20))


@pytest.fixture
def packed(tmp_path):
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("set/train.jsonl", ROWS)
        file.writestr("set/validation.jsonl", ROWS.replace("world", "fox"))
    return path


def test_a_url_gives_the_samples_of_the_file(opened, write, pieces, packed, tmp_path):
    path = write(ROWS)
    one = opened(path, pieces)
    assert opened(f"file://{path}", pieces).fingerprint == one.fingerprint
    both = opened(packed, pieces)
    assert (len(both.train), len(both.validation)) == (20, 20)
    for url in (f"zip://set::file://{packed}", f"zip://::{packed}"):
        assert opened(url, pieces).fingerprint == both.fingerprint
    inner = opened(f"zip://set/train.jsonl::{packed}*2", pieces)
    assert inner.train.mixture.places == 2 * len(inner.train)
    copies = list((tmp_path / "cache/fetched").glob("*/**/*.jsonl"))
    opened(f"file://{path}", pieces)
    assert sorted(copies) == sorted((tmp_path / "cache/fetched").glob("*/**/*.jsonl"))
    write(ROWS.replace("hello", "Hello"))
    assert opened(f"file://{path}", pieces).fingerprint != one.fingerprint


@pytest.mark.parametrize(
    "url, words",
    [
        ("file:///no/such/file.jsonl", "cannot be fetched"),
        ("nonsense://a/b.jsonl", "cannot be fetched .*rotocol"),
        ("zip://::no.zip", "cannot be fetched"),
        ("./no.zip", "'./no.zip' does not exist"),
    ],
)
def test_what_cannot_be_fetched_is_one_sentence(opened, pieces, url, words):
    with pytest.raises(DataError, match=words) as caught:
        opened(url, pieces)
    assert "\n" not in str(caught.value)


def test_a_protocol_without_its_package_names_it(opened, pieces, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "s3fs", None)  # as where it is not installed
    with pytest.raises(DataError, match="s3://b/a.jsonl' needs a package .*s3fs"):
        opened("s3://b/a.jsonl", pieces)


def test_an_archive_cannot_write_beside_its_copy(opened, pieces, tmp_path):
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("../../evil.jsonl", ROWS)
    with pytest.raises(DataError, match="cannot be fetched"):
        opened(path, pieces)
    assert not list(tmp_path.rglob("evil.jsonl"))
