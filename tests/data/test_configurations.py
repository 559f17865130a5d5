"""A dataset's README.md says which files belong together."""

import json
from pathlib import Path

import pytest

from tests.data.conftest import sought
from train.errors import DataError

BOTH = """configs:
- config_name: all
  data_files:
  - split: train
    path: data/all/train*
  - split: test
    path: [data/all/held.jsonl]
- config_name: small
  data_dir: data/small
"""


@pytest.fixture
def hub(tmp_path):
    """Return what writes a folder as a hub hands it out, with a README's front matter."""

    def hub(head):
        for name in ("all/train-0", "all/train-1", "all/held", "small/a", "small/.hidden"):
            path = tmp_path / f"set/data/{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"text": name}) + "\n")
        (tmp_path / "set/README.md").write_text(f"---\n{head}---\n# A set\n")
        return str(tmp_path / "set")

    return hub


def split_names(source):
    return {
        split: [f"{path.parent.name}/{path.stem}" for path in files]
        for split, files in source.files.items()
    }


def test_one_of_several_must_be_named(hub):
    folder = hub(BOTH)
    with pytest.raises(DataError, match=r"several configurations \(all, small\): .*set:all$"):
        sought(folder)
    found = sought(f"{folder}:all")
    assert split_names(found) == {"train": ["all/train-0", "all/train-1"], "test": ["all/held"]}
    assert found.notices == (
        "the configuration 'all' of all, small is read, as the dataset's README.md says",
    )
    assert split_names(sought(f"{folder}:small")) == {"train": ["small/a"]}
    with pytest.raises(DataError, match="has no configuration 'smal', .* mean 'small'"):
        sought(f"{folder}:smal")


@pytest.mark.parametrize("mark", ["  default: true\n", ""])
def test_the_default_is_taken_and_told(hub, mark):
    head = BOTH + mark if mark else BOTH.replace("name: small", "name: default")
    found = sought(hub(head))
    assert split_names(found) == {"train": ["small/a"]} and found.notices


@pytest.mark.parametrize(
    "files, splits",
    [
        ("data/all", {"train": ["all/held", "all/train-0", "all/train-1"]}),
        ("'*/all/t*'", {"train": ["all/train-0", "all/train-1"]}),
        ("{train: data/all/train-0.jsonl, dev: data/small/*}",
         {"train": ["all/train-0"], "validation": ["small/a"]}),
    ],
)  # fmt: skip
def test_files_are_named_in_every_form_that_the_hub_knows(hub, files, splits):
    folder = hub(f"configs:\n- config_name: all\n  data_files: {files}\n")
    assert split_names(sought(folder)) == splits


@pytest.mark.parametrize("path", ["data/none/*", "/etc/*", ""])
def test_files_that_are_not_there_are_named(hub, path):
    folder = hub(f"configs:\n- config_name: all\n  data_files:\n  - path: '{path}x'\n")
    with pytest.raises(DataError, match="for its configuration 'all': fetch it"):
        sought(folder)


@pytest.mark.parametrize("head", ["license: mit\n", "configs: [\n", "- a\n", "configs: all\n", ""])
def test_a_readme_without_configurations_is_no_matter(hub, head):
    assert "train" in sought(hub(head)).files


def test_a_file_has_no_configurations(hub):
    file = hub("") + "/data/small/a.jsonl"
    with pytest.raises(DataError, match="does not exist"):
        sought(f"{file}:all")
    with pytest.raises(DataError, match="has no configuration 'all', only none"):
        sought(f"{hub('')}:all")


def test_parts_that_a_pattern_names_are_all_there(hub):
    head = "configs:\n- config_name: a\n  data_files: data/all/p*\n"
    folder = hub(head)
    for name in ("p-00000-of-00002.jsonl", "other.jsonl"):
        (Path(folder) / "data/all" / name).write_text("{}\n")
    with pytest.raises(DataError, match="lacks p-00001-of-00002.jsonl, which README.md names by"):
        sought(folder)
    assert sought(hub(head.replace("p*", "p-00000*"))).files.keys() == {"train"}


def test_what_decides_how_rows_are_read_is_refused_where_it_is_not_heeded(hub):
    head = "configs:\n- config_name: a\n  data_files: data/all/held.jsonl\n  names: [b, c]\n"
    with pytest.raises(DataError, match="says by names how the files of its configuration 'a'"):
        sought(hub(head))


def test_files_without_a_split_are_the_train_split(hub):
    folder = hub("configs:\n- config_name: a\n  data_files: data/all/held.jsonl\n")
    assert split_names(sought(f"{folder}:a:train")) == {"train": ["all/held"]}
