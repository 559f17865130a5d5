import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from train.data.preset import build_preset
from train.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
ROWS = [{"text": f"hello world {number}"} for number in range(40)]

ASKED, SAID = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def told(data, words):
    return any(words in notice for notice in data.notices)


def texts(split):
    return {tuple(split.sample(number)[0].tolist()) for number in range(len(split))}


def test_without_a_validation_split_each_sample_draws_its_side(opened, write, pieces):
    rows = [{"text": f"hello {n} world {n * n}"} for n in range(1000)]
    data = opened(write(rows), pieces)
    held = texts(data.validation)
    assert 30 <= len(data.validation) <= 70 and len(data.train) + len(data.validation) == 1000
    assert told(data, f"is kept for evaluation ({len(data.validation)} of 1000)")
    assert not held & texts(data.train)
    half = opened(write(rows[::-2], "half.jsonl"), pieces, block_size=100, loss_on="all")
    assert texts(half.validation) == held & (texts(half.train) | texts(half.validation))


def test_samples_that_are_alike_are_on_the_same_side(opened, write, pieces):
    rows = [{"text": f"hello {n % 50}"} for n in range(1000)]
    data = opened(write(rows), pieces)
    assert len(data.validation) % 20 == 0 and not texts(data.validation) & texts(data.train)


def test_one_sample_is_held_out_and_one_trains_however_few_there_are(opened, write, pieces):
    small = opened(write(ROWS[:3]), pieces)
    assert (len(small.train), len(small.validation)) == (2, 1)
    same = opened(write([ROWS[0]] * 3, "same.jsonl"), pieces)
    assert (len(same.train), len(same.validation)) == (2, 1)


def test_a_folder_is_split_by_the_names_of_its_files(opened, write, pieces, tmp_path):
    write(ROWS[:10], "set/data/train-00000.jsonl")
    write(ROWS[10:20], "set/data/train-00001.jsonl")
    write(ROWS[20:25], "set/validation.jsonl")
    write(ROWS[25:], "set/test.jsonl")
    data = opened(tmp_path / "set", pieces)
    assert (len(data.train), len(data.validation)) == (20, 5)
    assert told(data, "test split is not used") and not told(data, "5 %")


def test_files_of_several_folders_are_read_as_one_and_told(opened, write, pieces, tmp_path):
    write(ROWS[:10], "set/all/a.jsonl")
    write(ROWS[10:20], "set/small/a.jsonl")
    assert told(opened(tmp_path / "set", pieces), "several folders are read as one: all, small")


def test_a_saved_datasets_folder_is_read(opened, pieces, tmp_path):
    import datasets

    parts = {"train": ROWS[:30], "validation": ROWS[30:36]}
    whole = datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in parts.items()})
    whole.save_to_disk(tmp_path / "both")
    whole["train"].save_to_disk(tmp_path / "one")
    both, one = opened(tmp_path / "both", pieces), opened(tmp_path / "one", pieces)
    assert (len(both.train), len(both.validation)) == (30, 6)
    assert (len(one.train), len(one.validation)) == (29, 1)


def test_every_format_gives_the_same_dataset(opened, write, pieces, tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    paths = [
        write(ROWS),
        write(json.dumps(ROWS), "a.json"),
        write("text\n" + "".join(row["text"] + "\n" for row in ROWS), "a.csv"),
        write("".join(row["text"] + "\n" for row in ROWS), "a.txt"),
        tmp_path / "a.parquet",
    ]
    assert len({opened(path, pieces).fingerprint for path in paths}) == 1


def test_a_sample_of_a_hundred_thousand_tokens_is_cut_and_counted(opened, write, pieces):
    long = {"text": "hello " * 100_000}
    data = opened(write([long, *ROWS]), pieces, block_size=64)
    assert data.train.lengths[0] == 64 and data.train.lengths.max() == 64
    assert told(data, "1 of 41 samples are longer than --block-size 64 tokens")


def test_samples_without_a_loss_token_are_left_out_and_counted(opened, write, pieces):
    rows = [{"prompt": "hello " * n, "completion": "world"} for n in (1, 500, 2, 3)]
    data = opened(write(rows), pieces, block_size=64)
    assert len(data.train) + len(data.validation) == 3
    assert told(data, "1 samples without a loss token were left out")


def test_the_stores_arrays_agree_with_its_samples(opened, write, pieces):
    data = opened(write(ROWS), pieces)
    for split in (data.train, data.validation):
        samples = [split.sample(number) for number in range(len(split))]
        assert [len(tokens) for tokens, _ in samples] == split.lengths.tolist()
        assert [mask.sum() for _, mask in samples] == split.loss_tokens.tolist()
        assert not any(mask[0] for _, mask in samples)
        with pytest.raises(IndexError):
            split.sample(len(split))
    tokens, mask = data.train.sample(0)
    assert (tokens.dtype, mask.dtype) == (np.int32, np.bool_)


def test_bad_rows_are_skipped_and_counted_when_asked(opened, write, pieces):
    lines = [json.dumps(row) for row in ROWS]
    lines[3:3] = ["[1]", '{"text": 5}', '{"txet": "a"}', "{", '{"text": "\\ud800"}']
    path = write("\n".join(lines))
    with pytest.raises(DataError, match=r"data.jsonl, line 4 is not .* --skip-bad-rows"):
        opened(path, pieces)
    data = opened(path, pieces, skip_bad_rows=True)
    assert len(data.train) + len(data.validation) == 40
    assert told(data, "5 bad rows were skipped; the first: ") and told(data, "line 4")
    assert data.fingerprint == opened(write(ROWS, "good.jsonl"), pieces).fingerprint


@pytest.mark.parametrize(
    "row, words",
    [
        ({"text": 5}, "line 2: column 'text' must be text, but is a number"),
        ({"text": None}, "line 2: column 'text' must be text, but is null"),
        ({"tex": "a"}, "line 2: column 'text' is missing: found tex"),
    ],
)
def test_a_row_with_a_wrong_column_is_named(opened, write, pieces, row, words):
    with pytest.raises(DataError, match=words):
        opened(write([ROWS[0], row]), pieces)


def test_unknown_columns_are_listed_with_those_that_work(opened, write, pieces):
    with pytest.raises(DataError) as caught:
        opened(write([{"promt": "a", "answer": "b"}]), pieces)
    for words in ("line 1", "found promt, answer", "messages", "instruction", "mean 'prompt'"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.jsonl", "", "is empty"),
        ("a.json", "[]", "is empty"),
        ("a.csv", "text\n", "is empty"),
        ("a.jsonl", '{"text": "a"}', "gives 1 sample, but 2 are needed"),
        ("a.doc", "x", "not a kind of file"),
        ("set/validation.jsonl", '{"text": "a"}', "no training data, only validation"),
        ("set/readme.md", "x", "no data file"),
    ],
)
def test_a_dataset_that_cannot_be_trained_on_is_refused(
    opened, write, pieces, name, content, words
):
    path = write(content, name)
    with pytest.raises(DataError, match=words):
        opened(path.parent if "set" in name else path, pieces)


def test_samples_that_are_all_without_loss_are_refused(opened, write, pieces):
    rows = [{"prompt": "hello " * 99, "completion": "world"}] * 2
    with pytest.raises(DataError, match=r"none of the 2 rows .*\(--block-size is 16\)"):
        opened(write(rows), pieces, block_size=16)


@pytest.mark.parametrize("name", ["./nothing", "/no/such/file.jsonl", "nothing.csv", "~/no/no"])
def test_a_missing_path_is_refused_at_once_and_never_sought_on_the_hub(opened, pieces, name):
    begin = time.process_time()
    with pytest.raises(DataError, match="does not exist"):
        opened(name, pieces)
    assert time.process_time() - begin < 0.5


def test_a_missing_file_names_the_one_that_was_meant(opened, write, pieces):
    path = write(ROWS, "train_set.jsonl")
    with pytest.raises(DataError, match=r"mean 'train_set.jsonl'"):
        opened(path.with_name("trian_set.jsonl"), pieces)


def test_a_second_opening_reads_nothing_again(opened, write, pieces, tmp_path):
    path = write(ROWS)
    first = opened(path, pieces)
    stores = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*") if p.is_file()}
    begin = time.process_time()
    second = opened(path, pieces, batch_size=7, seed=3)
    assert time.process_time() - begin < 0.2
    assert first.fingerprint == second.fingerprint and first.notices == second.notices
    assert stores == {
        p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*") if p.is_file()
    }


def test_the_fingerprint_changes_with_the_tokens_and_masks_and_with_nothing_else(
    opened, write, pieces, chatml, tmp_path
):
    rows = [{"prompt": f"hello {n}", "completion": " world " * 9} for n in range(9)]
    path = write(rows)
    base = opened(path, pieces).fingerprint
    assert opened(write(rows, "copy.jsonl"), pieces, cache=tmp_path / "two").fingerprint == base
    changed = [
        opened(path, pieces, loss_on="all").fingerprint,
        opened(path, pieces, block_size=12).fingerprint,
        opened(path, chatml).fingerprint,
        opened(write(rows[::-1]), pieces).fingerprint,
        opened(write([*rows, rows[0]]), pieces).fingerprint,
    ]
    assert len({base, *changed}) == 6


def test_the_fingerprint_is_of_the_samples_that_are_not_held_out_and_no_others(
    opened, write, pieces
):
    data = opened(write([{"text": f"hello {n} " * (1 + n % 5)} for n in range(60)]), pieces)
    assert len(data.validation)
    for split in (data.train, data.validation):
        digest = hashlib.sha256(split.lengths.astype("<i4").tobytes())
        for number in range(len(split)):
            for part in split.sample(number):
                digest.update(part.tobytes())
        assert split.fingerprint == digest.hexdigest()[:16]


def test_a_damaged_store_is_made_again(opened, write, pieces, tmp_path):
    path = write(ROWS)
    first = opened(path, pieces).fingerprint
    (store,) = (tmp_path / "cache").rglob("tokens.i32")
    os.truncate(store, 10)
    assert opened(path, pieces).fingerprint == first


def test_the_cache_is_closed_to_others(opened, write, pieces, tmp_path):
    opened(write(ROWS), pieces)
    for folder in ("cache", "cache/datasets"):
        assert (tmp_path / folder).stat().st_mode & 0o777 == 0o700


def test_rows_of_no_kind_are_skipped_at_the_beginning_as_well(opened, write, pieces):
    data = opened(write([{"meta": 1}, *ROWS]), pieces, skip_bad_rows=True)
    assert len(data.train) + len(data.validation) == 40
    assert told(data, "skipped; the first: ") and told(data, "no known set of columns")


def test_a_later_row_that_counts_for_less_is_refused(opened, write, pieces):
    rows = [{"prompt": "a", "completion": "b", "label": label} for label in (None, False)]
    with pytest.raises(DataError, match="line 2: 'label' judges the answer"):
        opened(write(rows), pieces)
    rows = [{"text": "a", "weight": weight} for weight in (1, 1, 0)]
    with pytest.raises(DataError, match="line 3: 'weight' is 0, but all rows count alike"):
        opened(write(rows), pieces)


def test_a_text_beside_a_prompt_is_seen_where_earlier_rows_had_null(opened, write, pieces):
    rows = [{"prompt": "a", "note": None}] * 3 + [{"prompt": "b", "note": "c"}]
    with pytest.raises(DataError, match="line 4: 'prompt' alone would be trained, though 'note'"):
        opened(write(rows), pieces)


@pytest.mark.parametrize(
    "first, later, columns",
    [
        ({"text": "a", "label": 1}, {"text": "b", "label": "it is 5"}, {}),
        ({"text": "a", "role": None}, {"text": "b", "role": "user"}, {}),
        ({"Frage": "a", "note": None}, {"Frage": "b", "note": "c"}, {"prompt": "Frage"}),
        ({"messages": [ASKED, SAID], "answer": "c"}, {"messages": [ASKED], "answer": "c"}, {}),
    ],
)
def test_each_row_is_asked_what_stands_beside_what_is_trained(
    opened, write, chatml, first, later, columns
):
    """How the first row is read was decided for all with the same columns."""
    with pytest.raises(DataError, match=r"line 3: '\w+'.* would be (trained|left out)"):
        opened(write([first, first, later]), chatml, columns=tuple(columns.items()))


def test_questions_alone_are_not_helped_by_a_larger_block(opened, write, chatml):
    with pytest.raises(DataError, match="they hold no text of the assistant's.: give other data$"):
        opened(write([{"messages": [ASKED]}] * 2), chatml)


def test_a_completion_that_earlier_rows_had_not_is_no_prompt_alone(opened, write, pieces):
    rows = [{"prompt": "a"}, {"prompt": "b", "completion": "c"}]
    with pytest.raises(DataError, match="line 2: has completion as well, which the rows before"):
        opened(write(rows), pieces)


def test_a_cache_that_cannot_be_made_is_one_sentence(opened, write, pieces):
    path = write(ROWS)
    with pytest.raises(ConfigError, match="the cache folder .* cannot be used"):
        opened(path, pieces, cache=path / "cache")
    write("no folder", "cache/fetched")
    with pytest.raises(ConfigError, match="the cache folder .* cannot be used"):
        opened(f"file://{path}", pieces, cache=path.parent / "cache")
    with pytest.raises(ConfigError, match="the cache folder .* cannot be used"):
        build_preset(path / "cache")


OPEN = """
import sys
from pathlib import Path
from train.config import DataConfig, ModelConfig
from train.data.open import open_dataset
from train.errors import DataError
try:
    data = open_dataset(
        DataConfig(sys.argv[1], None, False, 4, 64, 0),
        ModelConfig(None, sys.argv[2], "fp32", None, False),
        Path(sys.argv[3]),
    )
    print(data.fingerprint, sorted({"torch", "transformers", "datasets"} & set(sys.modules)))
except DataError as error:
    print(error)
"""


def open_in_three_processes(path, tokenizer, cache):
    command = [sys.executable, "-c", OPEN, str(path), str(tokenizer), str(cache)]
    started = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    return [process.communicate(timeout=60)[0].strip() for process in started]


@pytest.mark.slow
def test_three_processes_make_a_dataset_once_and_without_torch(write, pieces, tmp_path):
    path = write(ROWS * 500)
    said = open_in_three_processes(path, pieces, tmp_path / "cache")
    assert len(set(said)) == 1 and said[0].endswith(" []")
    assert len(list((tmp_path / "cache/datasets").glob("*.partial"))) == 0
    assert len(list((tmp_path / "cache/datasets").glob("*/tokens.i32"))) == 1


@pytest.mark.slow
def test_three_processes_fail_with_the_same_words(write, pieces, tmp_path):
    path = write("".join(json.dumps(row) + "\n" for row in ROWS * 500) + "{\n")
    said = open_in_three_processes(path, pieces, tmp_path / "cache")
    assert len(set(said)) == 1 and "line 20001 is not a JSON object" in said[0]


def test_what_a_killed_process_left_behind_is_cleared(opened, write, pieces, tmp_path):
    path = write(ROWS)
    first = opened(path, pieces)
    (store,) = [p for p in (tmp_path / "cache/datasets").iterdir() if p.is_dir()]
    store.rename(store.with_suffix(".partial"))
    assert opened(path, pieces).fingerprint == first.fingerprint
    assert not store.with_suffix(".partial").exists()


@pytest.mark.parametrize("name", ["somebody/something", "something"])
def test_a_name_that_the_hub_does_not_answer_for_is_one_sentence(opened, pieces, monkeypatch, name):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=f"'{name}' is neither a local path nor") as caught:
        opened(name, pieces)
    assert "\n" not in str(caught.value)
