import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from train.commands.prepare import command
from train.errors import DataError

ROOT = Path(__file__).resolve().parents[2]


def test_what_is_prepared_is_what_the_run_opens(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert command(["--block-size", "64"]) == 0
    first = capsys.readouterr().out
    tokens = int(re.search(r"(\d+) tokens are prepared", first).group(1))
    assert 50_000 < tokens < 64 * 4100
    sample = first.partition("what carries loss between « and »:\n")[2]
    assert "### Response:\n[info]     «def " in sample and sample.count("\n") <= 20
    assert command(["--block-size", "64"]) == 0
    assert capsys.readouterr().out == first


def test_neither_torch_nor_deepspeed_is_imported():
    code = "import sys, train.commands.prepare\n"
    code += "sys.exit(bool({'torch', 'deepspeed'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_a_mistake_is_found_before_the_run(tmp_path, monkeypatch, preset):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"question": "?"}) + "\n")
    with pytest.raises(DataError, match="question"):
        command(["--model-name-or-path", str(preset.model), "--dataset-name-or-path", str(data)])
