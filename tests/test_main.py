"""`python train/main.py`, as a user types it: mistakes are one sentence, runs leave a model."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.chaos.launches import MARK, left
from tests.support.ranks import run_main

ROOT = Path(__file__).resolve().parents[1]


def main(cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Start it, and see that nothing of it is left."""
    mark = uuid.uuid4().hex
    done = subprocess.run(
        [sys.executable, str(ROOT / "train" / "main.py"), *words],
        cwd=cache, capture_output=True, text=True, timeout=300,
        env=os.environ | {"XDG_CACHE_HOME": str(cache / "cache"), "HF_HUB_OFFLINE": "1",
                          MARK: mark},
    )  # fmt: skip
    assert left(mark) == []
    return done


def forked(cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The same, where what is told late matters and not the interpreter's start."""
    return run_main(words, cache, XDG_CACHE_HOME=str(cache / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A Mistral with random weights and the real Mistral SentencePiece model of 32,000 pieces."""
    import mistral_common
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    folder = tmp_path_factory.mktemp("model") / "mistral"
    torch.manual_seed(0)
    config = MistralConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=32000,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(folder)
    pieces = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    shutil.copy(pieces, folder / "tokenizer.model")
    return folder


ROWS = [
    {"instruction": f"say {n}", "input": "", "output": f"{n} " * (n % 9 + 1)} for n in range(64)
]


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def embedding(entries: int, model: Path, folder: Path) -> Path:
    """A copy of the model that embeds the first so many entries of its tokenizer only."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": entries}))
    weights = load_file(folder / "model.safetensors")
    fewer = {name: w[:entries].clone() if len(w) == 32000 else w for name, w in weights.items()}
    save_file(fewer, folder / "model.safetensors", {"format": "pt"})
    return folder


def mistake(tmp_path: Path, name: str) -> list[str]:
    """The dataset of a mistake, made when it is asked for."""
    made = {
        "good": lambda p: write(p, ROWS),
        "no column": lambda p: write(p, [{"frage": "a", "antwort": "b"}]),
        "empty": lambda p: p.write_text(""),
        "not utf-8": lambda p: p.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n'),
        "not an object": lambda p: p.write_text('{"text": "a"}\n[1]\n'),
        "two rows": lambda p: write(p, ROWS[:2]),
    }
    made[name](tmp_path / "data.jsonl")
    return ["--dataset-name-or-path", str(tmp_path / "data.jsonl")]


MISTAKES = {
    "a model folder that is not there": ("good", "--model-name-or-path ./nowhere", "./nowhere"),
    "no usable column": ("no column", "", "frage"),
    "an empty dataset": ("empty", "", "is empty"),
    "invalid UTF-8": ("not utf-8", "", "line 2"),
    "a row that is not an object": ("not an object", "", "line 2"),
    "a batch of nothing": ("good", "--batch-size 0", "--batch-size must be a whole number of at"),
    "a batch larger than the data": ("good", "--batch-size 500", "500"),
    "an unknown flag": ("good", "--batchsize 5", "did you mean '--batch-size'?"),
    "a typo in the ds_config": ("good", "--ds-config typo.json", "did you mean"),
    "a duplicate key in the ds_config": ("good", "--ds-config twice.json", "twice"),
    "a removed key in the ds_config": ("good", "--ds-config removed.json", "elasticity"),
    "a ds_config that is not there": ("good", "--ds-config ds_configs/zero4.json", "zero4.json"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_exits_2_with_one_sentence(name, model, tmp_path):
    data, words, wanted = MISTAKES[name]
    (tmp_path / "typo.json").write_text('{"zero_optimisation": {"stage": 2}}')
    (tmp_path / "twice.json").write_text('{"bf16": {"enabled": true}, "bf16": {"enabled": true}}')
    (tmp_path / "removed.json").write_text('{"elasticity": {"enabled": true}}')
    base = [] if "--model" in words else ["--model-name-or-path", str(model)]
    began = os.times()
    done = main(tmp_path, *base, *mistake(tmp_path, data), *words.split())
    seconds = os.times().children_user - began.children_user
    assert done.returncode == 2, done.stderr
    errors = done.stderr.strip().splitlines()
    assert len(errors) == 1 and errors[0].startswith("[error] "), done.stderr
    assert wanted in errors[0]
    assert "Loading the model" not in done.stdout
    if data == "good" and "500" not in words:
        assert seconds < 2  # of the processor: nothing heavy is imported


# The keys of metrics.jsonl, as docs/design.md has them.
STEP = """step loss lr grad_norm samples loss_tokens tokens padded_tokens seconds tokens_per_s mfu
    world_size plan sample_hash peak_bytes skipped time"""
EVALUATION = "step eval_loss eval_tokens eval_data"


def test_nothing_heavy_is_imported_before_the_arguments_are_checked(tmp_path):
    code = "import sys, train.config, train.run.inputs, train.planning, train.launch.arguments; "
    code += "heavy = {'torch', 'deepspeed', 'transformers', 'datasets'} & set(sys.modules); "
    code += "sys.exit(str(heavy) if heavy else 0)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_a_run_ends_with_a_model_that_transformers_loads(model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    data = write(
        tmp_path / "data.jsonl", [*ROWS, {"instruction": "x", "output": "long " * 100_000}]
    )
    with gzip.open(tmp_path / "data.jsonl.gz", "wb") as packed:
        packed.write(data.read_bytes())
    done = main(
        tmp_path, "--model-name-or-path", str(model), "--batch-size", "12", "--block-size", "64",
        "--dataset-name-or-path", f"{data}.gz", "--epochs", "2", "--lr", "1e-3",
        "--precision", "fp32", "--run-dir", "run", "--eval-step", "4", "--report-to", "tensorboard",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = re.search(r"(\d+) samples to train on, (\d+) held out", done.stdout)
    assert found, done.stdout
    train, held = map(int, found.groups())
    assert held and train + held == 65
    total = 2 * (train // 12)
    assert f"[Step {total}/{total}]" in done.stdout
    assert "leaked" not in done.stdout + done.stderr  # nanobind (triton) reports what outlives it
    assert "were truncated" in done.stdout or "was truncated" in done.stdout
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, total + 1))
    assert set(steps[0]) == set(STEP.split())
    assert all({*line} == set(EVALUATION.split()) for line in lines if "loss" not in line)
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert {line["step"] for line in lines if "eval_loss" in line} == {0, 4, 8, total}
    attempt = run / "attempts" / "0001"
    names = {"config.json", "plan.json", "ds_config.json", "environment.json", "log.txt"}
    assert names <= {path.name for path in attempt.iterdir()}
    assert (run / "DONE").exists()
    assert list((run / "tensorboard").iterdir())
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "say 3"}], tokenize=False)
    assert asked.endswith("\n\n### Instruction:\nsay 3\n\n### Response:\n")
    assert "written with the alpaca template; the" in (run / "model/README.md").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(run / "model")
    ids = tokenizer("say 3", return_tensors="pt")
    assert loaded.generate(**ids, max_new_tokens=4).shape[1] > ids["input_ids"].shape[1]


def test_a_dry_run_prints_a_plan_and_leaves_nothing(model, tmp_path):
    data = write(tmp_path / "data.jsonl", ROWS)
    words = ["--dataset-name-or-path", str(data), "--batch-size", "8", "--run-dir", "run",
             "--dry-run", "--pin", "zero=1"]  # fmt: skip
    less = embedding(31999, model, tmp_path / "less")  # the last piece occurs in no sample
    done = forked(tmp_path, "--model-name-or-path", str(less), *words)
    assert done.returncode == 0, done.stderr
    assert "The number of candidates is" in done.stdout
    assert "the model embeds only 31999: no sample uses the others" in done.stdout
    assert "ZeRO stage : 1, " in done.stdout  # the command line wins over the ds_config's stage 3
    assert not (tmp_path / "run").exists()


def test_tokens_that_the_model_does_not_embed_are_refused(model, tmp_path):
    few = embedding(300, model, tmp_path / "few")
    data = write(tmp_path / "data.jsonl", ROWS)
    done = forked(
        tmp_path, "--model-name-or-path", str(few), "--dataset-name-or-path", str(data),
        "--batch-size", "8", "--run-dir", "run", "--dry-run",
    )  # fmt: skip
    assert done.returncode == 2
    said = "the tokenizer has 32000 entries but the model embeds only 300, and samples use '"
    assert said in done.stderr
