"""What a run leaves for others: its folder loads where people load models, and says what it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.model_mutations import folders
from tests.support.ranks import run_main
from train.config import LoraConfig, ModelConfig
from train.output.card import next_commands

ROOT = Path(__file__).resolve().parents[1]
Ended = subprocess.CompletedProcess[str]
ROWS = [
    {"messages": [{"role": "user", "content": f"the fox {n}"},
                  {"role": "assistant", "content": f"jumps {n * 7}"}]}
    for n in range(60)
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A Llama whose tokenizer writes ChatML and ends texts in another token."""
    return folders(tmp_path_factory.mktemp("base"))["tokenizer.json"]


def train(folder: Path, base: Path, *words: str, start: Callable[..., Ended] = run_main) -> str:
    """Train in a forked process, or in one that `start` starts; return what it said."""
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    done = start(
        ["--model-name-or-path", str(base), "--dataset-name-or-path", str(data), "--run-dir",
         str(folder / "run"), "--batch-size", "8", "--block-size", "64", "--precision", "fp32",
         *words],
        ROOT, XDG_CACHE_HOME=str(folder / "cache"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "kernels" not in done.stderr  # as what peft imports would say
    return done.stdout


def started(words: Sequence[str], folder: Path, **env: str) -> Ended:
    """As a user starts it: with libraries that are imported, and print, on the way."""
    return subprocess.run(
        [sys.executable, str(ROOT / "train/main.py"), *words], cwd=folder, capture_output=True,
        text=True, timeout=300, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
    )  # fmt: skip


def test_a_whole_model_is_saved_for_others(base, tmp_path):
    said = train(tmp_path, base, "--max-steps", "30", "--lr", "1e-2", "--save-only-model",
                 "--eval-step", "5", "--early-stop", "3")  # fmt: skip
    model = tmp_path / "run/model"
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
             "tokenizer_config.json", "chat_template.jinja", "README.md"}  # fmt: skip
    assert names <= {path.name for path in model.iterdir()}
    _require_what_servers_read(model, base)
    _require_answer(model)
    card = (model / "README.md").read_text()
    assert 'library_name: "transformers"' in card
    assert "Made from fast on data.jsonl, with anyrank." in card
    assert "evaluation loss |" in card and str(tmp_path) not in card
    assert "Loss on held-out samples:" in said and " before training, " in said
    assert ">>> generated:" in said
    assert f"Serve it:   vllm serve {model}" in said
    assert f"Upload it:  hf upload YOUR-NAME/run {model}" in said
    assert "--save-only-model: the run cannot go on from its end" in said


def _require_what_servers_read(folder: Path, base: Path) -> None:
    """vLLM and llama.cpp's converter take class, type, names and template from these files."""
    from safetensors import safe_open
    from transformers import AutoTokenizer

    config, before = (json.loads((at / "config.json").read_text()) for at in (folder, base))
    assert config == before | {"dtype": "float32"} and config["architectures"]
    with (
        safe_open(folder / "model.safetensors", "np") as file,
        safe_open(base / "model.safetensors", "np") as own,
    ):
        assert set(file.keys()) == set(own.keys())
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F32"}  # noqa: SIM118
        (rows, _) = file.get_slice("model.embed_tokens.weight").get_shape()
    saved, known = (AutoTokenizer.from_pretrained(at) for at in (folder, base))
    assert len(saved) <= rows == config["vocab_size"] and saved.get_vocab() == known.get_vocab()
    assert saved.special_tokens_map == known.special_tokens_map
    assert (folder / "chat_template.jinja").read_text() == known.chat_template
    talk = ROWS[0]["messages"]
    assert saved.apply_chat_template(talk) == known.apply_chat_template(talk)


def _require_answer(folder: Path) -> None:
    """Ask as a user would: by messages; the answer ends where a turn does."""
    from transformers import AutoTokenizer, pipeline

    found = pipeline("text-generation", model=str(folder), dtype="float32")
    turn = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<|im_end|>")
    assert turn in found.model.generation_config.eos_token_id
    talk = [{"role": "user", "content": "the fox 3"}]
    answer = found(talk, max_new_tokens=40, do_sample=False)[0]["generated_text"][-1]
    assert answer["role"] == "assistant" and "im_end" not in answer["content"]
    assert len(found.tokenizer(answer["content"])["input_ids"]) < 40


def test_an_adapter_is_saved_for_peft_and_its_merge_names_both(base, tmp_path, monkeypatch):
    from peft import AutoPeftModelForCausalLM
    from safetensors import safe_open

    said = train(tmp_path, base, "--max-steps", "2", "--use-lora", "--lora-r", "24", start=started)
    run = tmp_path / "run"
    assert f"Merge it:   anyrank export {run} --merge-lora" in said
    served = f"--lora-modules tuned={run}/model --max-lora-rank 32 --generation-config {run}/model"
    assert f"vllm serve {base} --enable-lora {served}\n" in said
    settings = json.loads((run / "model/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base)
    # What vLLM refuses of an adapter, and the form of its names.
    assert (settings["peft_type"], settings["r"], settings["bias"]) == ("LORA", 24, "none")
    assert not (settings["modules_to_save"] or settings["use_dora"] or settings["use_rslora"])
    targets = {name.rpartition(".")[2] for name in settings["target_modules"]}
    assert {"q_proj", "down_proj"} < targets and "lm_head" not in targets
    with safe_open(run / "model/adapter_model.safetensors", "np") as file:
        assert "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight" in set(file.keys())
    assert "An adapter of fast on data.jsonl" in (run / "model/README.md").read_text()
    adapted = AutoPeftModelForCausalLM.from_pretrained(run / "model")
    done = subprocess.run(
        [sys.executable, "-m", "train.cli", "export", str(run), "--merge-lora"], cwd=ROOT,
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(next((run / "export").iterdir()))
    whole = adapted.merge_and_unload().state_dict()
    for name, value in merged.state_dict().items():
        assert (value - whole[name]).abs().max() < 1e-6, name
    _require_parts(run, merged.state_dict(), tmp_path / "parts", monkeypatch)


def _require_parts(run: Path, whole: dict, folder: Path, monkeypatch) -> None:
    """A large model is divided into files, with the index by which all find its weights."""
    from transformers import AutoModelForCausalLM

    from train.commands import export
    from train.engine import huggingface

    monkeypatch.setattr(huggingface, "LARGEST_FILE", 60_000)
    assert export.command([str(run), "--merge-lora", "--output", str(folder)]) == 0
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files == sorted(set(index["weight_map"].values())) and len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all((folder / name).stat().st_size < 70_000 for name in files)
    found = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in whole.values())
    assert all((found[name] == value).all() for name, value in whole.items())


def test_an_adapter_whose_base_writes_no_turns_is_served_with_the_template(tmp_path):
    lora = LoraConfig(16, 32, 0.0)
    model = ModelConfig("/base", None, "bf16", lora, False, chat_template="chatml", hub="o/base")
    serve, upload = next_commands(tmp_path, tmp_path / "model", model, kept=False)
    assert serve.endswith(f"vllm serve o/base --enable-lora --lora-modules tuned={tmp_path}/model")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/chat_template.jinja").touch()
    (serve, _) = next_commands(tmp_path, tmp_path / "model", model, kept=False)
    assert serve.endswith(f" --chat-template {tmp_path}/model/chat_template.jinja")
    (serve, _) = next_commands(
        tmp_path, tmp_path / "model", replace(model, chat_template=None), kept=False, made=True
    )
    assert serve.endswith(f" --chat-template {tmp_path}/model/chat_template.jinja")
    assert upload.startswith("Upload it:")
    run = tmp_path / "a run"
    *_, merge, upload = next_commands(run, run / "model", model, kept=True)
    assert merge.endswith(f"anyrank export '{run}' --merge-lora")
    assert upload.endswith(f"YOUR-NAME/a-run '{run}/model'")
