"""What a run leaves for others: its folder loads where people load models, and says what it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.model_mutations import folders

ROOT = Path(__file__).resolve().parents[1]
ROWS = [
    {"messages": [{"role": "user", "content": f"the fox {n}"},
                  {"role": "assistant", "content": f"jumps {n * 7}"}]}
    for n in range(60)
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A Llama whose tokenizer writes ChatML and ends texts in another token."""
    return folders(tmp_path_factory.mktemp("base"))["tokenizer.json"]


def train(folder: Path, base: Path, *words: str) -> str:
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    done = subprocess.run(
        [sys.executable, str(ROOT / "train/main.py"), "--model-name-or-path", str(base),
         "--dataset-name-or-path", str(data), "--run-dir", str(folder / "run"), "--batch-size",
         "8", "--block-size", "64", "--precision", "fp32", *words],
        capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_a_whole_model_is_saved_for_others(base, tmp_path):
    said = train(tmp_path, base, "--max-steps", "30", "--lr", "1e-2", "--save-only-model",
                 "--eval-step", "5", "--early-stop", "3")  # fmt: skip
    model = tmp_path / "run/model"
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
             "tokenizer_config.json", "chat_template.jinja", "README.md"}  # fmt: skip
    assert names <= {path.name for path in model.iterdir()}
    assert json.loads((model / "config.json").read_text())["dtype"] == "float32"
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


def test_an_adapter_is_saved_for_peft_and_its_merge_names_both(base, tmp_path):
    from peft import AutoPeftModelForCausalLM

    said = train(tmp_path, base, "--max-steps", "2", "--use-lora")
    run = tmp_path / "run"
    assert f"Merge it:   anyrank export {run} --merge-lora" in said
    assert f"vllm serve {base} --enable-lora --lora-modules tuned={run}/model" in said
    settings = json.loads((run / "model/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base)
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
