import json
from types import SimpleNamespace

import pytest

from train.checkpoint.identity import RunFingerprint, adapter_of, meaning
from train.checkpoint.index import Index
from train.config import parse_args
from train.engine.export import _places, _replace, _require_same_base
from train.errors import CheckpointError


def test_a_model_whose_configuration_has_changed_since_the_run_is_not_written(tmp_path):
    config = {"rope_theta": 1e4, "transformers_version": "5"}
    index = Index(3, 1, RunFingerprint({"config": meaning(config)}, {}), {}, {})
    opened = SimpleNamespace(index=index, base=tmp_path, config=parse_args([]).model)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**config, "transformers_version": "6"}))
    _require_same_base(opened, merged=False)
    path.write_text(json.dumps({**config, "rope_theta": 500}))
    with pytest.raises(CheckpointError, match=r"\(rope_theta 10000.0, now 500\) since the run"):
        _require_same_base(opened, merged=False)


def test_an_adapter_is_not_written_with_the_scale_of_another_run(tmp_path):
    """A checkpoint that was copied into the folder of a run with another --lora-alpha."""
    words = ("--model-name-or-path", "m", "--dataset-name-or-path", "d", "--use-lora")
    one, other = (parse_args([*words, "--lora-alpha", alpha]).model for alpha in ("32", "64"))
    saved = {"config": {}, "adapter": adapter_of(one)}
    index = Index(3, 1, RunFingerprint(saved, {}), {}, {})
    opened = SimpleNamespace(index=index, base=tmp_path, config=one)
    (tmp_path / "config.json").write_text("{}")
    _require_same_base(opened, merged=False)
    opened.config = other
    with pytest.raises(CheckpointError, match=r"another LoRA shape \(alpha 32, now 64\): put it"):
        _require_same_base(opened, merged=False)


def test_a_link_stays_and_the_model_goes_where_it_points(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert _places(tmp_path / "out") == (tmp_path / "disk", tmp_path / "disk.incomplete")


def test_what_somebody_has_put_beside_a_saved_model_is_kept_when_it_is_saved_again(tmp_path):
    """A GGUF file or data in the folder was deleted when the run went on, without a word."""

    def saved(*names):
        (tmp_path / "new").mkdir()
        for name in ("config.json", "model.safetensors", *names):
            (tmp_path / "new" / name).write_text("new")
        return tmp_path / "new"

    model = tmp_path / "model"
    assert _replace(saved(), model) == ""
    (model / "model-00001-of-00002.safetensors").write_text("larger, before")
    assert _replace(saved(), model) == "" and len(list(tmp_path.iterdir())) == 1
    for number in (1, 2):
        (model / "model.gguf").write_text("mine")
        told = _replace(saved("tokenizer.json"), model)
        place = tmp_path / f"model.before-{number}"
        assert told == (
            f"{model} held other things (model.gguf): all that was there before is in {place}"
        )
        assert (place / "model.gguf").read_text() == "mine"
    assert sorted(path.name for path in model.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
