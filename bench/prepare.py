"""How preparing data scales with cores: `python bench/prepare.py [--against CHECKOUT]`.

The preset's functions, as texts and as conversations of three turns, are tokenized by a byte-level
BPE with a ChatML template that is trained on them: by `anyrank prepare`'s own code on each number
of cores, by `datasets.map` with as many processes (its template's text tokenized, no masks), and
with --against by another checkout's code; libraries are imported beforehand. The quickest of
--rounds is kept. Printed are tokens per second, tokens per second of all processes' processor time,
which a busy machine changes less, how many cores others kept busy meanwhile, and what more cores
are worth.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import record
from train.data.preset import build_preset

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TIMED = """
import os, resource, sys, time
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[4])])
def spent():
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in found)
def busy():  # seconds of all cores, those that other machines took from this one included
    words = open("/proc/stat").readline().split()[1:9]
    return (sum(map(int, words)) - int(words[3]) - int(words[4])) / os.sysconf("SC_CLK_TCK")
data, tokenizer, cache, cores = sys.argv[1:5]
"""
OURS = """
from pathlib import Path
from train.config import DataConfig, ModelConfig
from train.data.open import open_dataset
from train.data.tokenizers import load_tokenizer
model = ModelConfig(None, tokenizer, "fp32", None, False)
load_tokenizer(model)
began, before, all_before = time.perf_counter(), spent(), busy()
made = open_dataset(DataConfig(data, None, False, 4, 4096, 0), model, Path(cache))
tokens = int(made.train.lengths.sum() + made.validation.lengths.sum())
took, used = time.perf_counter() - began, spent() - before
print(tokens, took, used, busy() - all_before - used)
"""
MAP = """
import datasets, transformers
datasets.disable_progress_bars()
datasets.config.HF_DATASETS_CACHE = cache
inner = transformers.AutoTokenizer.from_pretrained(tokenizer)
def encode(rows):
    texts = rows.get("text") or [
        inner.apply_chat_template(one, tokenize=False) for one in rows["messages"]
    ]
    return {"input_ids": inner(texts, add_special_tokens=False)["input_ids"]}
began, before, all_before = time.perf_counter(), spent(), busy()
table = datasets.load_dataset("json", data_files=data, split="train", cache_dir=cache)
table = table.map(encode, batched=True, num_proc=int(cores), remove_columns=table.column_names)
took, used = time.perf_counter() - began, spent() - before
others = busy() - all_before - used
print(sum(map(len, table["input_ids"])), took, used, others)
"""


def main() -> None:
    """Make the data, measure each way in a process of its own, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, default=24000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--against", type=Path, help="another checkout, such as a git worktree")
    parser.add_argument("--record", action="store_true", help="write bench/results/prepare.json")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files, tokenizer = make_data(Path(folder), asked.rows)
        rows = []
        for kind, file in files.items():
            ways = [("anyrank", ROOT, OURS), ("datasets.map", ROOT, MAP)]
            ways += [("before", asked.against, OURS)] if asked.against else []
            cells = [(cores, *way) for cores in asked.cores for way in ways]
            tried = [
                [
                    measure(code, checkout, file, tokenizer, cores)
                    for cores, _, checkout, code in cells
                ]
                for _ in range(asked.rounds)
            ]
            for (cores, name, *_), found in zip(cells, zip(*tried, strict=True), strict=True):
                best = max(found, key=lambda one: one["tokens/s"])
                rows.append({"rows": kind, "way": name, "cores": cores, **best})
        for row in rows:
            row["times one core"] = row["tokens/s"] / _rate(rows, row, cores=asked.cores[0])
            row["per core s, times anyrank's"] = row["tokens/core s"] / _rate(
                rows, row, "tokens/core s", way="anyrank"
            )
    print(record.table(rows))
    if asked.record:
        print(record.write("prepare", rows, {"rows": asked.rows, "rounds": asked.rounds}))


def _rate(rows: list[dict[str, Any]], own: Mapping[str, Any], what: str = "tokens/s",
          **changed: Any) -> float:  # fmt: skip
    wanted = {key: own[key] for key in ("rows", "way", "cores")} | changed
    return next(float(r[what]) for r in rows if all(r[k] == v for k, v in wanted.items()))


def measure(code: str, checkout: Path, file: Path, tokenizer: Path, cores: int) -> dict[str, float]:
    """Run one way in a process of its own, with nothing cached."""
    env = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as cache:
        words = [sys.executable, "-c", TIMED + code, str(file), str(tokenizer), cache, str(cores)]
        done = subprocess.run(words, env=env, cwd=cache, check=True, stdout=subprocess.PIPE)
    tokens, took, used, others = map(float, done.stdout.split()[-4:])
    return {"tokens": tokens, "tokens/s": tokens / took, "tokens/core s": tokens / used,
            "others' cores": others / took}  # fmt: skip


def make_data(folder: Path, count: int) -> tuple[dict[str, Path], Path]:
    """Write the rows of each kind, and the tokenizer's folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    lines = build_preset(folder / "preset").dataset.read_text().splitlines()
    given = [json.loads(line) for line in lines]
    texts, chats = [], []
    for number in range(count):
        row = given[number % len(given)]
        turns = [given[(number * step) % len(given)] for step in (1, 7, 11)]
        texts.append({"text": f"# {number}\n{row['output']}"})
        said = [(f"{one['instruction']} {one['input']}", one["output"]) for one in turns]
        roles = [
            {"role": role, "content": text}
            for pair in said
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        chats += [{"messages": roles}] * (number % 3 == 0)
    files = {"text": folder / "text.jsonl", "chat": folder / "chat.jsonl"}
    for kind, rows in (("text", texts), ("chat", chats)):
        files[kind].write_text("".join(json.dumps(row) + "\n" for row in rows))
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8192, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    inner.train_from_iterator((row["text"] for row in texts[: len(given)]), trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    made.chat_template = TEMPLATE
    made.save_pretrained(folder / "tokenizer")
    return files, folder / "tokenizer"


if __name__ == "__main__":
    main()
