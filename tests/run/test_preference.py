"""What the model at the start found is kept by what it depends on, and for whoever comes."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from train.config import parse_args
from train.run.inputs import RunInputs
from train.run.preference import keep, referee, stored

FOUND = np.linspace(-3, 3, 50)


def inputs_of(model, *words):
    config = parse_args(["--model-name-or-path", str(model), "--dataset-name-or-path", "d", *words])
    return RunInputs(config, model, None, None, None, False)


@pytest.fixture
def model(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "model")


def test_a_model_of_other_settings_is_another_whose_answer_is_not_taken(model):
    first, file = referee(inputs_of(model)), model / "config.json"
    others = [referee(inputs_of(model, *words)) for words in
              (("--block-size", "2048"), ("--precision", "fp32"),
               ("--use-lora", "--quantize", "nf4"))]  # fmt: skip
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"transformers_version": "0"}))
    assert referee(inputs_of(model)) == first
    file.write_text(json.dumps(content | {"sliding_window": 8}))
    others.append(referee(inputs_of(model)))
    file.write_text(json.dumps(content))
    (model / "modeling_own.py").write_text("width = 1")
    assert referee(inputs_of(model)) == first
    others.append(referee(inputs_of(model, "--trust-remote-code")))
    (model / "modeling_own.py").write_text("width = 2")
    others.append(referee(inputs_of(model, "--trust-remote-code")))
    assert len({first, *others}) == 1 + len(others)


def test_runs_beside_each_other_keep_the_same_file(tmp_path):
    file = tmp_path / "a.reference.npy"
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: keep(file, FOUND), range(200))) == {""}
    assert (stored(file, 50) == FOUND).all() and stored(file, 49) is None
    assert list(tmp_path.iterdir()) == [file]
    for damaged in (b"", file.read_bytes()[:200], b"PK\x03\x04 no array"):
        file.write_bytes(damaged)
        assert stored(file, 50) is None


def test_a_cache_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "datasets").write_text("no folder")
    told = keep(tmp_path / "datasets/a.reference.npy", FOUND)
    assert told.startswith(f"What it found cannot be kept in {tmp_path}/datasets (Not a directory)")
