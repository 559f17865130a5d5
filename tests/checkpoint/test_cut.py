"""Tensors that are saved cut in one way, and loaded in another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.checkpoint.cut import Cut
from train.checkpoint.slices import Reader, ShardData, TensorMetadata, write_shards
from train.errors import CheckpointError

SHAPE = (11, 12, 5)
WHOLE = np.arange(11 * 12 * 5, dtype="<f4").reshape(SHAPE)
# Ways of two and of three parts; the last as fused matrices are cut, some of each of two.
LAYOUTS = [
    (None,),
    *(
        tuple(Cut(axis, ((first, last),)) for first, last in pairs)
        for axis, pairs in (
            (0, ((0, 4), (4, 11))), (1, ((0, 6), (6, 12))), (1, ((0, 1), (1, 8), (8, 12))),
        )
    ),
    (Cut(1, ((0, 2), (6, 9))), Cut(1, ((2, 6), (9, 12)))),
]  # fmt: skip


def part(cut: Cut | None) -> np.ndarray:
    """The elements of a cut, in row-major order."""
    if cut is None:
        return WHOLE.reshape(-1)
    taken = [WHOLE.take(range(*ends), axis=cut.dimension) for ends in cut.parts]
    return np.concatenate(taken, axis=cut.dimension).reshape(-1)


@pytest.fixture(scope="module", params=range(len(LAYOUTS)))
def saved(request, tmp_path_factory):
    """The tensor saved by each of a layout's parts, in two slices each."""
    folder = tmp_path_factory.mktemp("cut")
    found = []
    for number, cut in enumerate(LAYOUTS[request.param]):
        values = part(cut)
        middle = len(values) // 3
        for half, (start, stop) in enumerate([(0, middle), (middle, len(values))]):
            data = ShardData(
                "w", SHAPE, "F32", start, {"master": values[start:stop].view(np.uint8)}, cut
            )
            found.append(write_shards(folder / f"{number}{half}.safetensors", [data])["w"])
    return folder, TensorMetadata(SHAPE, "F32", ("master",), tuple(found))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_run_of_any_cut_is_read_whatever_the_cut_that_was_saved(saved, data):
    folder, entry = saved
    own = [piece.cut.dimension for piece in entry.slices if piece.cut is not None]
    fitting = [
        cut for layout in LAYOUTS for cut in layout
        if cut is None or not own or cut.dimension == own[0]
    ]  # fmt: skip
    cut = data.draw(st.sampled_from(fitting))
    wanted = part(cut)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(wanted))] * 2)))
    reader = Reader(folder, {"w": entry})
    found = [raw.view("<f4") for _, raw in reader.read("w", "master", start, stop, cut)]
    reader.close()
    assert np.array_equal(np.concatenate([*found, wanted[:0]]), wanted[start:stop])


def test_every_byte_is_verified_and_none_may_be_missing(saved):
    folder, entry = saved
    reader = Reader(folder, {"w": entry})
    reader.verify("w")
    reader.tensors = {"w": replace(entry, slices=entry.slices[1:])}
    with pytest.raises(CheckpointError, match="in files|in no file"):
        reader.verify("w")
    reader.close()
    path = folder / entry.slices[-1].file
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    reader = Reader(folder, {"w": entry})
    with pytest.raises(CheckpointError, match="other values"):
        reader.verify("w")
    reader.close()
    path.write_bytes(whole)


def test_a_part_that_is_saved_nowhere_is_missed(saved):
    folder, entry = saved
    reader = Reader(folder, {"w": replace(entry, slices=entry.slices[1:])})
    with pytest.raises(CheckpointError, match="in no file"):
        list(reader.read("w", "master", 0, entry.elements))
    reader.close()
