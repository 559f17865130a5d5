"""A saved model stops where what was trained ends."""

import json

import pytest

from tests.data.conftest import CHATML
from train.config import ModelConfig
from train.data.stops import settle_stops
from train.data.tokenizers import load_tokenizer


@pytest.fixture
def base(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "saved").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"bos_token_id": 5, "eos_token_id": 0}')
    return tmp_path / "base"


def settled(base, tokenizer):
    folder = base.with_name("saved")
    loaded = load_tokenizer(ModelConfig(None, str(tokenizer), "fp32", None, False))
    said = settle_stops(base, folder, loaded)
    path = folder / "generation_config.json"
    return said, json.loads(path.read_text()) if path.exists() else None


@pytest.mark.parametrize("own, stops", [(0, [0, 2]), ([0, 7], [0, 7, 2]), (None, [2])])
def test_the_end_of_a_turn_is_added_to_the_stops(base, chatml, own, stops):
    content = {"eos_token_id": own, "temperature": 0.6}
    (base / "generation_config.json").write_text(json.dumps(content))
    said, found = settled(base, chatml)
    assert found == {"eos_token_id": stops, "temperature": 0.6}
    assert "ends in '<|im_end|>', where the base model does not stop" in said


def test_without_a_generation_config_one_is_made_of_the_config(base, chatml):
    assert settled(base, chatml)[1] == {"bos_token_id": 5, "eos_token_id": [0, 2]}


def test_a_model_that_stops_there_already_is_left_as_it_is(base, chatml):
    (base / "config.json").write_text('{"eos_token_id": [2]}')
    assert settled(base, chatml) == ("", None)


def test_the_template_decides_and_not_only_the_tokenizers_last_token(base, chatml, tmp_path):
    import shutil

    folder = shutil.copytree(chatml, tmp_path / "t")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"eos_token": "<|endoftext|>"}
    path.write_text(json.dumps(settings))
    assert settled(base, folder)[1]["eos_token_id"] == [0, 2]
    (folder / "chat_template.jinja").write_text("{{ raise_exception('a system turn is needed') }}")
    base.with_name("saved").joinpath("generation_config.json").unlink()
    assert settled(base, folder) == ("", None)
    (folder / "chat_template.jinja").write_text(CHATML.replace("<|im_end|>", "<|endoftext|>"))
    assert settled(base, folder) == ("", None)
