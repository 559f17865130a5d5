"""Real tokens per second against the Hugging Face Trainer with DeepSpeed, on one machine.

    python bench/peers.py [--steps N] [--rounds R] [--shape small|mistral-7b] [--batch B] …

The same model (random weights), the same samples in the same order, the same batch per optimizer
step, the same precision, one process on one device. Each way runs in its own process, so that its
first step counts from a cold start; rounds take turns, and the median of a round's steps after the
first is taken, then the best round of each way: on a machine shared with others, noise only slows.

- anyrank: as `train/main.py` runs it;
- trainer: `Trainer` with ZeRO and a collator that pads to the longest of the micro-batch: default;
- trainer, grouped by length: `train_sampling_strategy="group_by_length"`, as its guide recommends;
- trainer, flattened: `DataCollatorWithFlattening`, as its guide recommends against padding;
- litgpt, where it is installed: its own model, loss, collator and step (`bench/peer_litgpt.py`).

LLaMA-Factory and axolotl train through the same Trainer, and pin other versions of torch or
transformers, so that they cannot stand beside it in one environment.

Ragged data is the embedded dataset; `equal` cuts its text into samples of one length.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
import os
import socket
import subprocess
import tempfile
import time
from importlib.util import find_spec
from itertools import pairwise
from statistics import median
from typing import Any

from bench import record

SHAPES: dict[str, dict[str, int]] = {
    "small": {
        "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 4096,
        "max_position_embeddings": 4096,
    },
    "mistral-7b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32768,
        "max_position_embeddings": 32768,
    },
}  # fmt: skip
WAYS = ("anyrank", "trainer", "trainer, grouped by length", "trainer, flattened", "litgpt")
LR = 1e-5


def main() -> int:
    parser = argparse.ArgumentParser(description="against the Hugging Face Trainer")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--micro", type=int, default=8, help="the Trainer's samples at a time")
    parser.add_argument("--block", type=int, default=512)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--layers", type=int, help="cut the shape to this many layers")
    parser.add_argument("--zero", type=int, default=2, choices=(1, 2, 3))
    parser.add_argument("--recompute", choices=("none", "full"), default="none")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        run_one(given, json.loads(given.one))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        prepare(given, Path(folder))
        rows = [row for data in ("ragged", "equal") for row in against(given, Path(folder), data)]
    print(record.table(rows))
    name = f"peers-{given.shape}"
    print(f"written to {record.write(name, rows, {'arguments': vars(given)})}")
    return 0


def prepare(given: argparse.Namespace, folder: Path) -> None:
    """Write the model and both datasets."""
    from bench.rig import preset_data, random_model

    sizes = SHAPES[given.shape]
    if given.layers:
        sizes = sizes | {"num_hidden_layers": given.layers}
    random_model(folder / "model", given.precision, **sizes)
    (folder / "ragged.jsonl").write_text(preset_data().read_text())
    (folder / "equal.jsonl").write_text(fill(given.block))


def fill(block: int) -> str:
    """Return .jsonl rows of which each fills a block of so many tokens and is cut to it."""
    from bench.rig import preset_data

    rows = [json.loads(line) for line in preset_data().read_text().splitlines()]
    text = "\n\n".join(row["output"] for row in rows)
    size = 8 * block  # characters; a token of this tokenizer has two to five
    cuts = [text[first : first + size] for first in range(0, len(text) - size, size // 4)]
    return "".join(json.dumps({"text": cut}) + "\n" for cut in cuts)


def against(given: argparse.Namespace, folder: Path, data: str) -> list[dict[str, Any]]:
    """Run every way in turns on one dataset; return a row for each."""
    ways = [way for way in WAYS if way != "litgpt" or find_spec("litgpt")]
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(given.rounds):
        for way in ways:
            out = folder / "result.json"
            task = {"way": way, "folder": str(folder), "data": data, "out": str(out),
                    "began": time.time()}  # fmt: skip
            words = [sys.executable, __file__, *sys.argv[1:], "--one", json.dumps(task)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{way} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
            found[way].append(json.loads(out.read_text()))
    ours = max(result["tokens_per_s"] for result in found["anyrank"])
    return [
        {
            "data": data, "way": way,
            "tokens_per_s": max(r["tokens_per_s"] for r in results),
            "ours_over_this": ours / max(r["tokens_per_s"] for r in results),
            "first_step": min(r["first_step"] for r in results),
            "first_loss": results[0]["losses"][0], "last_loss": results[0]["losses"][-1],
            "peak_gib": max(r["peak_bytes"] for r in results) / 2**30,
        }
        for way, results in found.items()
    ]  # fmt: skip


def run_one(given: argparse.Namespace, task: dict[str, Any]) -> None:
    """Train in one way; write what was measured to the task's file."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    act = {"anyrank": run_anyrank, "litgpt": run_litgpt}.get(task["way"], run_trainer)
    ends, losses, tokens, peak = act(given, task)
    seconds = [after - before for before, after in pairwise(ends)]
    # By the step: a mean would be moved by one slow minute.
    speed = median(t / s for t, s in zip(tokens[1:], seconds, strict=True))
    result = {"tokens_per_s": speed, "first_step": ends[0] - task["began"], "losses": losses,
              "peak_bytes": peak}  # fmt: skip
    Path(task["out"]).write_text(json.dumps(result))


def words_of(given: argparse.Namespace, task: dict[str, Any]) -> list[str]:
    folder = Path(task["folder"])
    return [
        "--model-name-or-path", str(folder / "model"), "--max-steps", str(given.steps),
        "--dataset-name-or-path", str(folder / f"{task['data']}.jsonl"), "--lr", str(LR),
        "--batch-size", str(given.batch), "--block-size", str(given.block),
        "--precision", given.precision, "--ds-config", "ds_configs/auto.json",
        "--pin", f"zero={given.zero}", "offload=none", f"recompute={given.recompute}",
        f"micro_tokens={given.micro * given.block}",
    ]  # fmt: skip


Measured = tuple[list[float], list[float], list[int], int]


def run_anyrank(given: argparse.Namespace, task: dict[str, Any]) -> Measured:
    """Train as `train/main.py` does, from the data on; return ends, losses, tokens, peak."""
    from bench.rig import QUIET, join, rig, train
    from train.loop import Outputs
    from train.output.trackers import NoTracker

    run = rig(join(), words_of(given, task))
    engine = run.engine()
    job = run.job(engine)
    records = train(engine, job, Outputs(QUIET, None, NoTracker(), Path(task["folder"])))
    return (
        [record.time for record in records],
        [record.loss for record in records],
        [record.tokens for record in records],
        records[-1].peak_bytes,
    )


def run_trainer(given: argparse.Namespace, task: dict[str, Any]) -> Measured:
    """Train with the Trainer on the samples of the same steps, in the same order."""
    import torch
    import transformers as hf

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}  # fmt: skip
    samples, tokens = same_samples(given, task)
    folder = Path(task["folder"])
    flat = task["way"].endswith("flattened")
    tokenizer = hf.AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    config: dict[str, Any] = {
        "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto", "gradient_clipping": "auto",
        "zero_optimization": {"stage": given.zero}, "zero_allow_untested_optimizer": True,
    }  # fmt: skip
    if given.precision == "bf16":
        config["bf16"] = {"enabled": True}
    grouped = task["way"].endswith("length")
    arguments = hf.TrainingArguments(
        output_dir=str(folder / "trainer"), per_device_train_batch_size=given.micro,
        gradient_accumulation_steps=-(-given.batch // given.micro), max_steps=given.steps,
        learning_rate=LR, lr_scheduler_type="constant", max_grad_norm=1.0, logging_steps=1,
        save_strategy="no", report_to=[], bf16=given.precision == "bf16", deepspeed=config,
        gradient_checkpointing=given.recompute == "full",
        use_cpu=not torch.cuda.is_available(), disable_tqdm=True,
        train_sampling_strategy="group_by_length" if grouped else "sequential",
    )  # fmt: skip
    model = hf.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    collator = (
        hf.DataCollatorWithFlattening()
        if flat
        else hf.DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    )
    watch = stopwatch(hf)
    trainer = hf.Trainer(
        model=model, args=arguments, train_dataset=samples, data_collator=collator,
        callbacks=[watch],
    )  # fmt: skip
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    from train.engine.step import peak_bytes

    return watch.ends, losses, tokens, peak_bytes(model.device)


def run_litgpt(given: argparse.Namespace, task: dict[str, Any]) -> Measured:
    """Train as LitGPT does on the samples of the same steps, in the same order."""
    import torch

    from bench import peer_litgpt
    from train.engine.step import peak_bytes

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    samples, tokens = same_samples(given, task)
    ends, losses = peer_litgpt.train(given, Path(task["folder"]) / "model", samples, LR)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return ends, losses, tokens, peak_bytes(torch.device(device))


def same_samples(
    given: argparse.Namespace, task: dict[str, Any]
) -> tuple[list[dict[str, list[int]]], list[int]]:
    """Return the samples of the run's steps, in order, and the real tokens of each step."""
    from train.config import parse_args
    from train.data.order import sample_ids
    from train.output.console import Console
    from train.paths import cache_folder
    from train.run import inputs

    cache = cache_folder(os.environ)
    source = inputs.locate(parse_args(words_of(given, task)), cache, Console(False))
    _, data = inputs.open_data(source, cache, Console(False))
    train = data.train
    samples, tokens = [], []
    for step in range(given.steps):
        ids = sample_ids(0, train.fingerprint, len(train.lengths), given.batch, step)
        tokens.append(int(train.lengths[ids].sum()))
        for number in ids:
            found, mask = train.sample(int(number))
            labels = [t if m else -100 for t, m in zip(found.tolist(), mask, strict=True)]
            samples.append({"input_ids": found.tolist(), "labels": labels})
    return samples, tokens


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stopwatch(hf: Any) -> Any:
    """Return a callback that notes when each optimizer step has ended."""

    class Stopwatch(hf.TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            from bench.rig import settle

            settle()
            self.ends.append(time.time())

    return Stopwatch()


if __name__ == "__main__":
    sys.exit(main())
