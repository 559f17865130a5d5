import pytest

from tests.data.conftest import sought
from train.data.source import roles
from train.errors import DataError


@pytest.mark.parametrize(
    "names, trained, held",
    [
        (("test", "train", "unsupervised"), "train", None),
        (("en",), "en", None),
        (("train_sft", "test_sft", "validation_b", "validation"), "train_sft", "validation"),
    ],
)
def test_a_split_of_the_very_name_comes_first(names, trained, held):
    chosen = roles("d", names)
    assert (chosen["train"], chosen.get("validation")) == (trained, held)


@pytest.mark.parametrize("names", [("train_sft", "test_sft", "train_gen"), ("en", "de", "test")])
def test_several_splits_to_train_on_are_refused(names):
    with pytest.raises(DataError, match=r"several splits to train on \(.*::"):
        roles("owner/name", names)


def folder_of(path, *names):
    for name in names:
        (path / name).write_text('{"text": "a"}\n')
    return path


def test_files_of_a_folder_that_are_not_used_are_named(tmp_path):
    folder = folder_of(tmp_path, "train.jsonl", "more.jsonl", "b.jsonl.zst", "README.md")
    assert sought(folder).notices == ("files that are not used: b.jsonl.zst, more.jsonl",)


@pytest.mark.parametrize(
    "names, said",
    [
        (("train_sft-0001.jsonl", "train_gen-0001.jsonl"), "train_gen-0001.jsonl, train_sft-0001"),
        (("train.jsonl", "train (copy).jsonl"), "train (copy).jsonl, train.jsonl"),
        (("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "dataset_infos.json"), ""),
    ],
)
def test_files_that_are_no_parts_of_one_are_named(tmp_path, names, said):
    notices = sought(folder_of(tmp_path, *names)).notices
    wanted = f"files of several names are read as one: {said}"
    assert len(notices) == bool(said) and all(one.startswith(wanted) for one in notices)


def test_splits_that_are_not_used_are_named(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = {"text": ["a"]}
    whole = {name: Dataset.from_dict(rows) for name in ("train", "unsupervised", "test")}
    DatasetDict(whole).save_to_disk(tmp_path / "set")
    opened, said = sought(tmp_path / "set").splits()
    assert set(opened) == {"train", "test"}
    assert said == ("splits that are not used: unsupervised",)
    with pytest.raises(DataError, match="has splits, but no configuration 'en'"):
        sought(f"{tmp_path}/set:en")


def test_the_same_files_in_other_splits_are_another_dataset(tmp_path):
    folder = folder_of(tmp_path, "a.jsonl", "b.jsonl", "c.jsonl")
    keys = set()
    for train, held in (("[a.jsonl, b.jsonl]", "c.jsonl"), ("a.jsonl", "[b.jsonl, c.jsonl]")):
        files = f"- split: train\n    path: {train}\n  - split: validation\n    path: {held}\n"
        head = f"configs:\n- config_name: default\n  data_files:\n  {files}"
        (folder / "README.md").write_text(f"---\n{head}---\n")
        keys.add(sought(folder).key)
    assert len(keys) == 2


def test_a_folder_that_lacks_a_part_or_what_a_link_names_is_refused(tmp_path):
    folder_of(tmp_path, "train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl")
    with pytest.raises(DataError, match="lacks train-00001-of-00003.jsonl, a part beside"):
        sought(tmp_path)
    folder_of(tmp_path, "train-00001-of-00003.jsonl", "train-2-of-5-stars.jsonl")
    assert len(sought(tmp_path).files["train"]) == 4
    (tmp_path / "train-more.jsonl").symlink_to("gone")
    with pytest.raises(DataError, match="train-more.jsonl is a link to a file that is gone"):
        sought(tmp_path)
