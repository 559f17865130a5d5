import json
import re
from dataclasses import asdict

import pytest

from train.config import parse_args
from train.config_file import expand
from train.errors import ConfigError
from train.launch import arguments

NAMED = ["--model-name-or-path", "m", "--dataset-name-or-path", "d.jsonl"]
YAML = """
model_name_or_path: m
dataset-name-or-path: d.jsonl
lr: 1e-4
use-lora: true
skip_bad_rows: false
save_dir:
columns: {prompt: Frage, completion: Antwort}
pin: {zero: 2, recompute: full}
"""

# As these trainers' own examples are.
AXOLOTL = """
base_model: m
load_in_4bit: false
datasets: [{path: d, type: alpaca}]
dataset_prepared_path: last_run_prepared
val_set_size: 0.05
output_dir: ./outputs/lora-out
sequence_len: 4096
sample_packing: true
eval_sample_packing: false
pad_to_sequence_len: true
adapter: lora
lora_model_dir:
lora_r: 32
lora_target_linear: true
wandb_project: p
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
tf32: false
gradient_checkpointing: true
resume_from_checkpoint:
logging_steps: 1
flash_attention: true
warmup_steps: 10
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
special_tokens: {pad_token: "<|end_of_text|>"}
"""
LLAMA_FACTORY = """
model_name_or_path: m
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: identity,alpaca_en_demo
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
dataloader_num_workers: 4
output_dir: saves/llama3-8b/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
"""


def test_a_file_gives_arguments_and_what_is_typed_wins(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(YAML)
    words = expand(["--config", str(path), "--lr", "2e-4", "--pin", "zero=3"])
    config = parse_args(words)
    assert (config.optimizer.lr, config.pins) == (2e-4, {"zero": "3", "recompute": "full"})
    assert config.model.lora is not None
    assert config.data.columns == (("prompt", "Frage"), ("completion", "Antwort"))
    assert config.output.save_dir is None
    assert arguments.parse(["4", f"--config={path}", "--seed", "3"]).args[-2:] == ("--seed", "3")


def test_an_earlier_runs_config_gives_the_same_run_in_a_folder_of_its_own(tmp_path):
    words = [*NAMED, "--use-lora", "--lora-r", "4", "--pin", "zero=1", "sp=2", "--seed", "9"]
    words += ["--columns", "text=Text", "--max-steps", "7", "--warmup-ratio", "0.1"]
    ran = parse_args([*words, "--run-dir", "r", "--save-dir", "s", "--resume", "must"])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(asdict(ran)))
    assert parse_args(expand(["--config", str(path)])) == parse_args(words)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lr: [", "is not YAML ("),
        ("- lr", "must hold arguments by name"),
        ("learning_rate: 1", "unknown argument '--learning-rate': here it is --lr"),
        ("lr: fast", "--lr must be a number, but is 'fast'"),
        ("lr: 1e-4\nlr: 1e-5", "'lr' stands twice"),
        ("columns: {text: a, text: b}", "'text' stands twice"),
        ("batch_size: 4\nbatch-size: 8", "--batch-size stands twice"),
        ("config: other.yaml", "a file cannot name another by 'config'"),
        ("seed: 0123", "0123 is no plain number in YAML: write it in decimal digits"),
        ("batch_size: 1:30", "1:30 is no plain number"),
        ("pin: {zero: 1, micro_tokens: 0x100}", "0x100 is no plain number"),
        ("dataset-name-or-path: [{path: a.jsonl}]", "list of texts or numbers, but holds {'path'"),
        ("seed: 2026-01-31", "'seed' must be text, a number, true or false"),
    ],
)
def test_a_mistake_names_the_file(tmp_path, text, sentence):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(sentence)) as caught:
        expand(["--config", str(path)])
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("text", "names"), [(AXOLOTL, 27), (LLAMA_FACTORY, 24)])
def test_each_name_of_another_trainers_file_is_answered_on_a_line_of_its_own(tmp_path, text, names):
    path = tmp_path / "theirs.yml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        expand(["--config", str(path)])
    told = str(caught.value).split("\n    ")[1:]
    assert len(told) == names
    assert [line for line in told if not re.search(": (here it is|leave it out)", line)] == []


def test_what_is_false_under_anothers_name_is_not_passed_over(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("bf16: false")
    with pytest.raises(ConfigError, match="'--bf16=false': here it is --precision bf16"):
        expand(["--config", str(path)])


def test_a_file_that_is_not_there_and_two_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read .*No such file"):
        expand(["--config", str(tmp_path / "none.json")])
    for words in (["--config"], ["--config", "a", "--config", "b"]):
        with pytest.raises(ConfigError, match="takes one YAML or JSON file, once"):
            expand(words)


@pytest.mark.parametrize(
    ("text", "typed", "meant"),
    [
        ("max_steps: 100", "--epochs 5", "--epochs 5"),
        ("warmup_ratio: 0.1", "--warmup-steps 5", "--warmup-steps 5"),
        ("columns: prompt=q,completion=a", "--columns prompt=x,completion=y",
         "--columns prompt=x,completion=y"),
        ("pin: zero=2", "--pin zero=3", "--pin zero=3"),
        ("pin: [zero=2, sp=2]", "--pin zero=3", "--pin sp=2 zero=3"),
        ("ds_config: a.json", "--deepspeed_config=b.json", "--ds-config b.json"),
    ],
)  # fmt: skip
def test_what_is_typed_takes_the_place_of_what_says_the_same(tmp_path, text, typed, meant):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    words = expand([*NAMED, "--config", str(path), *typed.split()])
    assert parse_args(words) == parse_args([*NAMED, *meant.split()])


def test_a_home_folder_that_no_shell_has_written_out_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    where = f"{tmp_path}/x"
    assert expand(["--run-dir=~/x", "--save_dir", "~/x"]) == (
        f"--run-dir={where}",
        "--save_dir",
        where,
    )
    (tmp_path / "a.yaml").write_text("run_dir: ~/x\n")
    assert expand(["--config", "~/a.yaml"]) == ("--run-dir", where)
