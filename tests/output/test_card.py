"""The model card: what a hub takes, what others may read, and true words."""

import json
from dataclasses import asdict

import pytest

from train.config import parse_args
from train.output.card import beside, model_card


@pytest.fixture
def card(tmp_path, monkeypatch):
    """Return the card of a run with these arguments, as `huggingface_hub` reads it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "attempt").mkdir()
    lines = ({"step": 9, "eval_loss": 0.5, "eval_tokens": 12},)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def make(*words, hub=None):
        from huggingface_hub import ModelCard

        config = asdict(parse_args(words))
        config["model"]["hub"] = hub
        (tmp_path / "attempt/config.json").write_text(json.dumps(config))
        (tmp_path / "attempt/environment.json").write_text(json.dumps({"arguments": words}))
        return ModelCard(model_card(tmp_path, tmp_path / "attempt", 9))

    return make


def test_several_datasets_are_named_each_and_those_of_the_hub_listed(card):
    from huggingface_hub.utils import validate_repo_id

    found = card(
        "--model-name-or-path", "owner/base", "--dataset-name-or-path",
        "/disk/me/secret/a.jsonl*2,owner/data:small:train@v1,https://me:pass@host/b.csv?key=s,imdb",
        "--run_dir", "/disk/me/runs/1", "--save-dir=/disk/me/out", "--chat-template",
        "/disk/me/t.jinja", "--eval-dataset-name-or-path=data/own/held.jsonl", hub="owner/base",
    )  # fmt: skip
    assert found.data.datasets == ["owner/data", "imdb"]
    assert found.data.base_model == "owner/base"
    for name in (*found.data.datasets, found.data.base_model):
        validate_repo_id(name)
    said = str(found)
    assert "on a.jsonl (weight 2), owner/data:small:train, b.csv, imdb, with" in said
    assert "a.jsonl*2,owner/data:small:train@v1,b.csv,imdb' --chat-template t.jinja " in said
    assert "0.5000 on 12 tokens of held.jsonl |" in said
    assert not [word for word in ("/disk", "secret", "pass", "key=", "own/held") if word in said]


def test_the_card_says_how_samples_were_written_and_the_template_lies_beside_it(card, tmp_path):
    words = ("--model-name-or-path", "m/n", "--dataset-name-or-path", "d.jsonl")
    card(*words)
    assert list(beside(tmp_path, tmp_path / "attempt", 9)) == ["README.md"]
    forms, template = ["samples are 'a' joined as they are"], "{{ messages }}"
    written = {"date": None, "forms": forms, "chat_template": template}
    (tmp_path / "attempt/tokenized.json").write_text(json.dumps(written))
    found = beside(tmp_path, tmp_path / "attempt", 9)
    assert "\n\nSamples are 'a' joined as they are.\n\n| |" in found["README.md"]
    assert found["chat_template.jinja"] == template


def test_a_card_counts_pairs_where_pairs_were_trained(card):
    found = card("--model-name-or-path", "/m/my base", "--dataset-name-or-path", "p.jsonl",
                 "--objective", "dpo", "--use-lora", "--batch-size", "8")  # fmt: skip
    assert found.data.tags == ["anyrank", "lora", "dpo"]
    assert (found.data.base_model, found.data.datasets) == (None, None)
    assert "| pairs per step | 8 |" in str(found) and "on 12 pairs held out |" in str(found)
    assert "# my base, fine-tuned" in str(found) and "'/m/" not in str(found)


def test_a_name_that_is_no_text_does_not_end_the_run(card):
    found = card("--model-name-or-path", "/m/\udce4", "--dataset-name-or-path", "d\udcfc.jsonl")
    assert "d\\udcfc.jsonl" in str(found)
    str(found).encode()
