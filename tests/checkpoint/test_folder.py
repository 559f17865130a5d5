import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from train.checkpoint import folder as checkpoints
from train.checkpoint.folder import complete, step_of, survey, verify
from train.checkpoint.identity import RunFingerprint
from train.checkpoint.index import Index, read_index
from train.checkpoint.slices import STATE, ShardData, TensorMetadata, write_shards
from train.errors import CheckpointError, FaultError


def attempt(run: Path, number: int = 1) -> Path:
    folder = run / "attempts" / f"{number:04d}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save(run: Path, step: int, number: int = 1) -> Path:
    """Commit a checkpoint of one vector whose values are the step."""
    partial = checkpoints.begin(run, step, attempt(run, number))
    values = {kind: np.full(5000, step, "<f4").view(np.uint8) for kind in STATE}
    written = write_shards(
        partial / "slices_00000.safetensors", [ShardData("w", (5000,), "F32", 0, values)]
    )
    entry = TensorMetadata((5000,), "F32", STATE, (written["w"],))
    index = Index(step, 1, RunFingerprint({"seed": 0}, {}), {}, {"w": entry})
    return checkpoints.commit(partial, index, attempt(run, number))


def test_a_committed_checkpoint_is_found_and_every_byte_of_it_verifies(tmp_path):
    folder = save(tmp_path, 20)
    assert folder == tmp_path / "checkpoints" / "step_00000020"
    assert complete(tmp_path) == (folder,)
    assert verify(folder).step == 20
    assert sorted(path.name for path in folder.iterdir()) == [
        "COMPLETE", "index.json", "slices_00000.safetensors",
    ]  # fmt: skip


def test_the_newest_come_first_by_number_not_by_name(tmp_path):
    for step in (9, 100_000_000, 20):
        save(tmp_path, step)
    assert [step_of(folder) for folder in complete(tmp_path)] == [100_000_000, 20, 9]


def test_a_folder_without_its_mark_does_not_exist(tmp_path):
    (save(tmp_path, 10) / "COMPLETE").unlink()
    checkpoints.begin(tmp_path, 20, attempt(tmp_path))
    (tmp_path / "checkpoints" / "step_x").mkdir()
    assert complete(tmp_path) == ()


def test_only_so_many_are_kept_and_the_newest_always(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step)
    checkpoints.prune(tmp_path, keep=2)
    assert [step_of(folder) for folder in complete(tmp_path)] == [30, 20]
    checkpoints.prune(tmp_path, keep=1, best=20)
    assert [step_of(folder) for folder in complete(tmp_path)] == [30, 20]
    checkpoints.prune(tmp_path, keep=1)
    assert [step_of(folder) for folder in complete(tmp_path)] == [30]


def test_a_start_that_was_overtaken_writes_nothing_more(tmp_path):
    old = checkpoints.begin(tmp_path, 10, attempt(tmp_path, 1))
    attempt(tmp_path, 2)
    index = Index(10, 1, RunFingerprint({}, {}), {}, {})
    with pytest.raises(FaultError, match="another start of this run has taken over"):
        checkpoints.commit(old, index, attempt(tmp_path, 1))
    with pytest.raises(FaultError, match="let only one start"):
        checkpoints.begin(tmp_path, 20, attempt(tmp_path, 1))
    assert complete(tmp_path) == ()
    save(tmp_path, 10, number=2)
    assert step_of(complete(tmp_path)[0]) == 10


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 10)
    folder = save(tmp_path, 10)
    assert complete(tmp_path) == (folder,)
    assert verify(folder).step == 10


HARMS = {
    "index cut": lambda f: (f / "index.json").write_text("{"),
    "index changed": lambda f: (f / "index.json").write_text(
        (f / "index.json").read_text().replace('"step":10', '"step":99')
    ),
    "index gone": lambda f: (f / "index.json").unlink(),
    "mark emptied": lambda f: (f / "COMPLETE").write_text(""),
    "mark not text": lambda f: (f / "COMPLETE").write_bytes(b"\xff\xfe"),
    "slices gone": lambda f: (f / "slices_00000.safetensors").unlink(),
    "slices cut": lambda f: os.truncate(f / "slices_00000.safetensors", 3000),
}


@pytest.mark.parametrize("name", HARMS)
def test_a_damaged_checkpoint_is_listed_as_damaged_beside_the_good(tmp_path, name):
    save(tmp_path, 5)
    HARMS[name](save(tmp_path, 10))
    good, bad = survey(tmp_path)
    assert (good.step, good.world_size, good.error) == (5, 1, None)
    assert good.bytes > 60_000
    assert (bad.step, bad.world_size) == (10, None)
    assert bad.error


def vouched(folder: Path, change) -> None:
    """Change an index and vouch for the change, as somebody who means harm would."""
    import xxhash

    content = json.loads((folder / "index.json").read_text())
    change(content)
    text = json.dumps(content)
    (folder / "index.json").write_text(text)
    (folder / "COMPLETE").write_text(xxhash.xxh3_64_hexdigest(text.encode()))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["tensors"]["w"]["slices"][0].update(file="../../other.safetensors"),
        lambda c: c["tensors"]["w"]["slices"][0].update(file="/etc/passwd"),
        lambda c: c["tensors"]["w"].update(dtype="pickle"),
        lambda c: c["tensors"]["w"].update(slices=[1]),
        lambda c: c.update(format=3),
        lambda c: c["tensors"]["w"]["slices"][0].update(cut={"dimension": 1, "parts": [[0, 1]]}),
        lambda c: c["tensors"]["w"]["slices"][0].update(
            cut={"dimension": 0, "parts": [[0, 10**9]]}
        ),
        lambda c: c["tensors"]["w"]["slices"][0].update(cut={"dimension": 0, "parts": []}),
        lambda c: c.pop("identity"),
        lambda c: c.update(surprise=1),
        lambda c: c.update(tensors=None),
        lambda c: c.update(step="10"),
        lambda c: c.update(step=-1),
        lambda c: c.update(step=True),
        lambda c: c.update(world_size=1.5),
        lambda c: c.update(terms=None),
        lambda c: c.update(identity=[]),
        lambda c: c.update(record="x"),
    ],
)
def test_an_index_that_means_harm_is_refused_whatever_vouches_for_it(tmp_path, change):
    folder = save(tmp_path, 10)
    vouched(folder, change)
    with pytest.raises(CheckpointError):
        read_index(folder)


def test_a_checkpoint_of_format_1_whose_slices_name_no_cut_is_read(tmp_path):
    folder = save(tmp_path, 10)

    def older(content):
        content["format"] = 1
        for shard in content["tensors"]["w"]["slices"]:
            del shard["cut"]

    vouched(folder, older)
    assert verify(folder).tensors["w"].slices[0].cut is None


def test_slices_that_are_not_all_of_a_tensor_are_not_committed(tmp_path):
    partial = checkpoints.begin(tmp_path, 10, attempt(tmp_path))
    entry = TensorMetadata((5000,), "F32", STATE, ())
    index = Index(10, 1, RunFingerprint({}, {}), {}, {"w": entry})
    with pytest.raises(FaultError, match="0 of the 5000 elements of w"):
        checkpoints.commit(partial, index, attempt(tmp_path))
    assert complete(tmp_path) == ()


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path(os.environ["BOMB"]),))


def test_a_pickle_planted_in_a_checkpoint_is_never_executed(tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    pickle.loads(pickle.dumps(Bomb()))
    assert (tmp_path / "exploded").exists(), "the bomb is live"
    (tmp_path / "exploded").unlink()
    run = tmp_path / "run"
    folder = save(run, 10)
    for name in ("model.pt", "data.pkl", "optimizer.bin", ".metadata"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    assert verify(folder).step == 10
    for name in ("slices_00000.safetensors", "index.json", "COMPLETE"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
        assert [one.error is None for one in survey(run)] == [False]
    assert not (tmp_path / "exploded").exists()


def test_going_on_from_an_older_step_sets_newer_folders_aside(tmp_path):
    save(tmp_path, 10)
    save(tmp_path, 20)
    checkpoints.begin(tmp_path, 30, attempt(tmp_path))
    checkpoints.tidy(tmp_path, start=10)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000010", "step_00000020.damaged"]
    save(tmp_path, 20)
    checkpoints.prune(tmp_path, keep=2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000010", "step_00000020"]


def test_starting_over_moves_the_old_checkpoints_out_of_the_way(tmp_path):
    save(tmp_path, 10)
    (tmp_path / "metrics.jsonl").write_text("the old curve\n")
    place = checkpoints.set_aside(tmp_path, attempt(tmp_path, 2))
    assert place == tmp_path / "checkpoints-before-0002"
    assert (place / "metrics.jsonl").read_text() == "the old curve\n"
    assert (place / "step_00000010" / "COMPLETE").exists()
    assert complete(tmp_path) == ()
    place = checkpoints.set_aside(tmp_path, attempt(tmp_path, 3))  # what made no checkpoint
    assert place == tmp_path / "checkpoints-before-0003"
    assert (place / "metrics.jsonl").read_text() == "the old curve\n"
    (tmp_path / "metrics.jsonl").write_text("")
    assert checkpoints.set_aside(tmp_path, attempt(tmp_path, 4)) is None


def test_too_little_space_is_refused_with_the_numbers(tmp_path):
    free = checkpoints.require_space(tmp_path / "not" / "yet", 1, "it needs")
    assert free > 0
    with pytest.raises(CheckpointError, match=r"it needs \S+ TB, but only .* are free in"):
        checkpoints.require_space(tmp_path, 10**18, "it needs")


def test_bytes_are_spoken_in_decimal_units():
    assert [checkpoints.format_bytes(n) for n in (0, 999, 1000, 2_400_000_000, 3e15)] == [
        "0 bytes", "999 bytes", "1.0 kB", "2.4 GB", "3000.0 TB",
    ]  # fmt: skip


def test_an_index_survives_the_way_to_disk_and_back(tmp_path):
    folder = save(tmp_path, 10)
    index = read_index(folder)
    assert index.tensors["w"].slices[0].length == 5000
    assert replace(index, step=11) != index
