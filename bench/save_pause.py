"""What a save costs training, and what a load reads.

    python bench/save_pause.py

A Mistral of 266 million parameters with random weights, fp32, on CPU ranks: saved on 2 ranks under
ZeRO-3, loaded on 4. The pause is what `save` takes, a blocking save what `save` and `wait` take;
the bytes read are also counted by the kernel (/proc/self/io). Budgets: a pause of 20 % of a
blocking save, 1.1 of the checkpoint's bytes read in all.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json
import tempfile
import time
from statistics import median

import torch
from transformers import MistralConfig, MistralForCausalLM

from bench import record
from tests.support.ranks import together
from train.checkpoint.folder import complete
from train.checkpoint.identity import RunFingerprint
from train.checkpoint.index import read_index
from train.config import parse_args
from train.engine import zero
from train.engine.gang import Gang
from train.engine.restore import restore
from train.engine.saver import Saver
from train.engine.start import start
from train.engine.step import Engine
from train.planning import Plan, read_ds_config, render, shape_of

SAVES = 4
PAUSE, READ = 0.20, 1.1


def engine_of(gang: Gang, model: Path) -> Engine:
    words = ["--model-name-or-path", str(model), "--dataset-name-or-path", "none"]
    config = parse_args([*words, "--precision", "fp32"])
    plan = Plan(zero=3, micro_tokens=64, dp=gang.world.size)
    shape = shape_of(json.loads((model / "config.json").read_text()))
    ds = read_ds_config(Path("ds_configs/auto.json"))
    zero = render(plan, shape, config.model, config.optimizer, ds)
    return start(gang, config, model, plan, zero)


def save(gang: Gang, model: Path, run: Path) -> None:
    engine = engine_of(gang, model)
    attempt = run / "attempts" / "0001"
    gang.on_main(lambda: attempt.mkdir(parents=True))
    saver = Saver(engine, run, attempt, RunFingerprint({}, {}), keep=1)
    for step in range(1, SAVES + 1):
        zero.init_state(engine, step)
        gang.barrier()
        began = time.perf_counter()
        saver.save(step)
        pause = time.perf_counter() - began
        saver.wait()
        blocking = time.perf_counter() - began
        if gang.world.is_main:
            row = {"save": step, "pause": pause, "blocking": blocking, "share": pause / blocking}
            note(run, row)


def resume(gang: Gang, model: Path, run: Path) -> None:
    engine = engine_of(gang, model)
    folder = complete(run)[0]
    size = sum(path.stat().st_size for path in folder.iterdir())
    gang.barrier()
    before, began = kernel_bytes(), time.perf_counter()
    read = restore(engine, folder, read_index(folder))
    seconds = time.perf_counter() - began
    counted = sum(gang.gather(kernel_bytes() - before))
    if gang.world.is_main:
        note(run, {
            "load_ranks": gang.world.size, "seconds": seconds, "bytes": size,
            "read": read / size, "read_by_the_kernel": counted / size,
        })  # fmt: skip


def note(run: Path, row: dict[str, float]) -> None:
    """Append a row to what the ranks have found."""
    with (run / "found.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def kernel_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="pause-") as name:
        model, run = Path(name) / "model", Path(name) / "run"
        torch.manual_seed(0)
        made = MistralForCausalLM(
            MistralConfig(
                hidden_size=1024, intermediate_size=4096, num_hidden_layers=12,
                num_attention_heads=16, num_key_value_heads=16, vocab_size=32000,
            )
        )  # fmt: skip
        parameters = sum(p.numel() for p in made.parameters())
        made.save_pretrained(model)
        del made
        together(2, save, model, run)
        together(4, resume, model, run)
        *saves, load = (json.loads(line) for line in (run / "found.jsonl").open())
    share = median(row["share"] for row in saves[1:])  # the first makes the room for the copy
    met = share <= PAUSE and load["read_by_the_kernel"] <= READ
    print(record.table(saves), record.table([load]), sep="\n\n")
    print(f"the pause is {share:.1%} of a blocking save (allowed {PAUSE:.0%})")
    summary = {"parameters": parameters, "share": share, "load": load, "met": met}
    print(f"written to {record.write('save_pause', saves, summary)}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
