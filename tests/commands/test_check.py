import json
from pathlib import Path

import pytest

from train.commands import check
from train.errors import ConfigError, HostfileError

CONFIG = {
    "model_type": "mistral", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 1000,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
}  # fmt: skip


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of a run that this machine can hold; its own folder is current."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "data.jsonl").write_text('{"text": "a"}\n')
    named = "--model-name-or-path model --dataset-name-or-path data.jsonl --batch-size 4"
    return named.split()


def test_this_machine_is_well_for_a_small_run(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.command(["2", *words, "--block-size", "64"]) == 0
    out = capsys.readouterr().out
    assert "localhost            ok" in out and out.endswith("All is well.\n")
    assert "the plan for 2 x cpu is ZeRO 3" in out and "GB of disk" in out


def test_a_model_that_is_too_large_for_the_hosts_fails_the_check(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (Path("model") / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 3 * 10**9}))
    assert check.command([*words, "--use-lora"]) == 1
    assert "[fail] nothing fits: the smallest plan needs" in capsys.readouterr().out


def test_mistakes_are_told_before_any_host_is_asked(
    words: list[str],
) -> None:
    with pytest.raises(ConfigError, match="did you mean '--batch-size'"):
        check.command([*words, "--batch-sise", "3"])
    with pytest.raises(HostfileError, match="absent"):
        check.command(["9", "--hostfile", "absent"])
    assert not Path("runs").exists()
