import errno
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from train.checkpoint import slices
from train.checkpoint.slices import BLOCK, Reader, ShardData, TensorMetadata, write_shards
from train.checkpoint.tensorfile import TensorSpec, read_header, write_header
from train.errors import CheckpointError, FaultError

ELEMENTS = 8 * BLOCK // 4 + 777  # eight blocks and a bit, of four bytes an element
WHOLE = {
    "master": np.random.default_rng(0).normal(size=ELEMENTS).astype("<f4"),
    "exp_avg": np.random.default_rng(1).normal(size=ELEMENTS).astype("<f4"),
}
FLAG = np.array([True, False, True])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A tensor in three files' slices and a buffer; the folder and its entries."""
    folder = tmp_path_factory.mktemp("slices")
    found = []
    for number, (start, stop) in enumerate([(0, 5), (5, 20_000), (20_000, ELEMENTS)]):
        values = {kind: whole[start:stop].view(np.uint8) for kind, whole in WHOLE.items()}
        parts = [ShardData("w", (ELEMENTS,), "F32", start, values)]
        if number == 0:
            parts.append(ShardData("flag", (3,), "BOOL", 0, {"value": FLAG.view(np.uint8)}))
        found.append(write_shards(folder / f"slices_{number:05d}.safetensors", parts))
    entries = {
        "w": TensorMetadata((ELEMENTS,), "F32", tuple(WHOLE), tuple(one["w"] for one in found)),
        "flag": TensorMetadata((3,), "BOOL", ("value",), (found[0]["flag"],)),
    }
    return folder, entries


def read(folder, entries, kind: str, start: int, stop: int) -> np.ndarray:
    reader = Reader(folder, entries)
    parts = list(reader.read("w", kind, start, stop))
    reader.close()
    at = start
    for first, raw in parts:
        assert first == at
        at += len(raw) // 4
    return np.concatenate([raw.view("<f4") for _, raw in parts] or [np.empty(0, "<f4")])


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(WHOLE)), st.integers(0, ELEMENTS), st.integers(0, ELEMENTS))
def test_any_run_of_elements_is_read_as_it_was_written(written, kind, one, other):
    start, stop = min(one, other), max(one, other)
    assert np.array_equal(read(*written, kind, start, stop), WHOLE[kind][start:stop])


def test_a_run_that_is_longer_than_one_read_is_read_in_several(written, monkeypatch):
    monkeypatch.setattr(slices, "CHUNK", BLOCK)
    assert np.array_equal(read(*written, "master", 3, ELEMENTS), WHOLE["master"][3:])


def test_safetensors_itself_reads_the_files(written):
    folder, _ = written
    found = load_file(folder / "slices_00001.safetensors")
    assert np.array_equal(found["w.exp_avg"], WHOLE["exp_avg"][5:20_000])
    assert load_file(folder / "slices_00000.safetensors")["flag.value"].tolist() == FLAG.tolist()


def test_only_the_blocks_that_are_asked_for_are_read(written):
    folder, entries = written
    reader = Reader(folder, entries)
    list(reader.read("w", "master", 100, 110))
    reader.close()
    assert reader.bytes <= BLOCK + 8 * 2 * 9


@pytest.mark.parametrize("place", [-1, -BLOCK - 3, -2 * BLOCK])
def test_one_flipped_bit_in_what_is_read_is_found(written, tmp_path, place):
    folder, entries = written
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    victim = tmp_path / "slices_00002.safetensors"
    content = bytearray(victim.read_bytes())
    content[place] ^= 4
    victim.write_bytes(content)
    with pytest.raises(CheckpointError, match="other values than saved"):
        read(tmp_path, entries, "exp_avg", 0, ELEMENTS)
    assert len(read(tmp_path, entries, "master", 0, 20_000)) == 20_000


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda p: p.unlink(), "cannot be read: No such file"),
        (lambda p: p.write_bytes(b""), "header is cut short"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "cut short at"),
        (lambda p: p.write_bytes(b"\x08" + bytes(7) + b"not json"), "cannot be read"),
        (lambda p: save_file({"other": np.zeros(3)}, p), "has no w.master of 19995 elements"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(written, tmp_path, harm, said):
    folder, entries = written
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    harm(tmp_path / "slices_00001.safetensors")
    with pytest.raises(CheckpointError, match=said):
        read(tmp_path, entries, "master", 0, ELEMENTS)


def test_a_table_of_checksums_that_was_replaced_with_its_data_is_found(written, tmp_path):
    """Whoever changes values and their checksums alike is caught by the index."""
    folder, entries = written
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "slices_00002.safetensors").unlink()
    other = {kind: (whole[20_000:] + 1).view(np.uint8) for kind, whole in WHOLE.items()}
    part = ShardData("w", (ELEMENTS,), "F32", 20_000, other)
    write_shards(tmp_path / "slices_00002.safetensors", [part])
    with pytest.raises(CheckpointError, match=r"checksums of w in .* are damaged"):
        read(tmp_path, entries, "master", 0, ELEMENTS)


def test_a_gap_between_slices_is_found(written):
    folder, entries = written
    first, _, last = entries["w"].slices
    holed = {"w": TensorMetadata((ELEMENTS,), "F32", tuple(WHOLE), (first, last))}
    with pytest.raises(CheckpointError, match=f"elements 5 to {ELEMENTS} of w are in no file"):
        read(folder, holed, "master", 0, ELEMENTS)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]},
        {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]},
        {"dtype": "no such", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
        [],
        None,
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path, entry):
    text = json.dumps({"w": entry}).encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(ValueError, match=r"header|cut short"):
        read_header(path)


def test_a_written_header_is_read_back_with_its_places(tmp_path):
    path = tmp_path / "a.safetensors"
    kinds = {
        "a": TensorSpec("BF16", (3, 2)),
        "b": TensorSpec("I64", ()),
        "c": TensorSpec("F32", (0,)),
    }
    with path.open("wb") as file:
        places = write_header(file, kinds, {"format": "pt"})
        file.write(bytes(12 + 8))
    assert read_header(path) == places
    assert (places["b"].stop - places["b"].start, places["c"].kind.bytes) == (8, 0)


def test_what_cannot_be_read_is_tried_again_and_is_a_fault_not_damage(written, monkeypatch):
    folder, entries = written
    real, calls = os.preadv, []

    def failing(*place):
        calls.append(place)
        if len(calls) in wrong:
            raise OSError(errno.EIO, "Input/output error")
        return real(*place)

    monkeypatch.setattr(os, "preadv", failing)
    monkeypatch.setattr(slices, "PAUSES", (0.0, 0.0))
    wrong = {1, 2}
    reader = Reader(folder, entries)
    assert list(reader.read("w", "master", 0, 10))
    wrong = set(range(1, 100))
    calls.clear()
    with pytest.raises(FaultError, match="not known to be damaged"):
        list(Reader(folder, entries).read("w", "master", 0, 10))
    assert len(calls) == 3
