import json
from pathlib import Path

import pytest

from train.errors import ConfigError, DataError, ModelError
from train.launch.arguments import (
    LaunchRequest,
    check,
    of_run,
    parse,
    require_path,
    require_replaceable,
    run_dir,
)


def test_the_count_and_the_hostfile_are_the_launchers_and_the_rest_is_the_runs() -> None:
    assert parse([]) == LaunchRequest(None, None, ())
    assert parse(["8", "--lr", "1", "--hostfile", "h", "--seed", "2"]) == LaunchRequest(
        8, "h", ("--lr", "1", "--seed", "2")
    )
    assert parse(["--hostfile=h"]) == LaunchRequest(None, "h", ())
    assert parse(["--hostfile", "h", "8", "--lr", "1"]) == LaunchRequest(8, "h", ("--lr", "1"))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["0"], "at least 1, but is 0"),
        (["-2"], "at least 1, but is -2"),
        (["two"], "but is 'two' instead"),
        (["2.5"], "but is '2.5' instead"),
        (["2", "--hostfile"], "lacks its value"),
        (["--hostfile", "a", "-H", "b"], "given twice"),
    ],
)
def test_a_wrong_launcher_word_is_one_sentence(argv: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(argv)


def test_the_run_folder_is_decided_once_and_given_to_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config, args = check(LaunchRequest(2, None, ("--seed", "3")), now=0.0)
    assert config.output.run_dir == args[-1] and args[-2] == "--run-dir"
    assert args[-1].startswith("runs/19") and args[-1].endswith("-preset")
    assert "--ds-config" in args  # found beside the code, as nothing lies in this folder
    named, same = check(LaunchRequest(2, None, ("--run-dir", "mine")), now=0.0)
    assert named.output.run_dir == "mine" and same.count("--run-dir") == 1


def test_a_second_run_of_one_second_gets_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config, args = check(LaunchRequest(None, None, ()), now=0.0)
    Path(args[-1]).mkdir(parents=True)
    assert run_dir(config, 0.0) == args[-1] + "-2"


def test_a_ds_config_with_a_typing_mistake_is_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    (tmp_path / "d.json").write_text('{"zero_optimisation": {"stage": 3}}')
    with pytest.raises(ConfigError, match="zero_optimi[sz]ation"):
        check(LaunchRequest(1, None, ("--ds-config", str(tmp_path / "d.json"))), now=0.0)


def test_local_paths_must_exist_and_hub_names_pass(tmp_path: Path) -> None:
    require_path(None, "model", ModelError)
    require_path("mistralai/Mistral-7B-v0.1", "model", ModelError)
    require_path(str(tmp_path), "model", ModelError)
    for name in ("./absent", "/absent/model", "data/rows.jsonl", "~/absent", "a/b/c"):
        with pytest.raises(DataError, match="does not exist"):
            require_path(name, "dataset", DataError)


def test_a_model_takes_the_place_of_a_saved_model_and_of_nothing_else(tmp_path: Path) -> None:
    require_replaceable(tmp_path / "new", None)
    saved, work = tmp_path / "saved", tmp_path / "work"
    saved.mkdir()
    require_replaceable(saved, None)
    (saved / "config.json").touch()
    (saved / "model.safetensors").touch()
    for card in ("", "# A model\ntags: [text]\n"):  # somebody else's, once deleted without a word
        (saved / "README.md").write_text(card)
        with pytest.raises(ConfigError, match="holds one that anyrank has not saved: name a new"):
            require_replaceable(saved, "owner/name")
    (saved / "README.md").write_text('---\ntags: ["anyrank"]\n---\n')
    require_replaceable(saved, "owner/name")
    with pytest.raises(ConfigError, match="is the model that is trained from"):
        require_replaceable(saved, str(saved))
    work.mkdir()
    (work / "thesis.tex").touch()
    for folder in (tmp_path, work, work / "thesis.tex"):
        with pytest.raises(ConfigError, match="would be replaced by the model, but holds other"):
            require_replaceable(folder, None)
    with pytest.raises(ConfigError, match="cannot be made, as .*thesis.tex is no folder"):
        require_replaceable(work / "thesis.tex" / "model", None)
    for folder, run in (("out", "out/run"), ("out", "out"), ("run/attempts/x", "run")):
        with pytest.raises(ConfigError, match="the run's own folder"):
            require_replaceable(tmp_path / folder, None, str(tmp_path / run))
    with pytest.raises(ConfigError, match="the run's own folder runs needs it"):
        require_replaceable(Path("runs"), None)
    require_replaceable(tmp_path / "run" / "model", None, str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"holds other things \(thesis\.tex\)"):
        check(LaunchRequest(1, None, ("--save-dir", str(work))), 0.0)


def test_a_run_does_not_put_its_model_in_the_place_of_the_one_it_trains_from(
    tmp_path: Path,
) -> None:
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (model / "config.json").touch()
    words = ("--model-name-or-path", str(model), "--dataset-name-or-path", "owner/rows")
    with pytest.raises(ConfigError, match="model is the model that is trained from: name another"):
        check(LaunchRequest(1, None, (*words, "--run-dir", str(tmp_path / "run"))), 0.0)
    check(LaunchRequest(1, None, (*words, "--run-dir", str(tmp_path / "second"))), 0.0)


def test_a_run_that_exists_goes_on_with_its_own_words_and_those_typed_over_them(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    stored = "--local_rank=0 --lr 1e-3 --max_steps=40 --pin zero=2 micro_tokens=400 --use-lora"
    stored += f" --run-dir {run} --deepspeed_config f.json --resume auto"
    for number, text, trained in ((1, stored, True), (2, "--lr 5", False)):
        attempt = run / "attempts" / f"{number:04d}"
        attempt.mkdir(parents=True)
        (attempt / "environment.json").write_text(json.dumps({"arguments": text.split()}))
        if trained:
            (attempt / "tokenized.json").write_text("{}")
    typed = ("--run-dir", str(run), "--pin", "zero=3", "--epochs=2")
    kept = ("--lr", "1e-3", "--use-lora", "--ds-config", "f.json")
    words, said = of_run(typed)
    assert words == (*kept, *typed)
    assert said == f"going on with {run} as it was started (0001): {' '.join(kept)}"
    assert of_run(("--run-dir", str(tmp_path / "new"), "--lr", "1")) == (
        ("--run-dir", str(tmp_path / "new"), "--lr", "1"),
        "",
    )
