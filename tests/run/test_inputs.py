"""What is run, from what was typed."""

import json

from train.config import World
from train.run import inputs


def test_a_run_of_a_users_model_goes_on_as_such_where_only_its_folder_is_named(tmp_path, capsys):
    """`python train/main.py --run-dir R` trained the preset there, before R had a checkpoint."""
    run = tmp_path / "run"
    attempt = run / "attempts/0001"
    attempt.mkdir(parents=True)
    (attempt / "tokenized.json").write_text("{}")

    def stored(text):
        (attempt / "environment.json").write_text(json.dumps({"arguments": text.split()}))

    typed = ["--run-dir", str(run), "--lr", "1"]
    stored("--model-name-or-path m --dataset-name-or-path d --lr 2 --epochs 4")
    named = ("--model-name-or-path", "m", "--dataset-name-or-path", "d")
    assert inputs.words(typed, World()) == (*named, "--epochs", "4", *typed)
    assert "[info] going on with" in capsys.readouterr().out
    assert inputs.words([*named, *typed], World()) == (*named, *typed)
    (tmp_path / "f.yaml").write_text("model_name_or_path: m\ndataset_name_or_path: d")
    config = ["--config", str(tmp_path / "f.yaml"), *typed]
    assert inputs.words(config, World()) == (*named, *typed)  # as a later start reads them
    stored("--epochs 4")  # of the preset
    assert inputs.words(typed, World()) == tuple(typed) and capsys.readouterr().out == ""
