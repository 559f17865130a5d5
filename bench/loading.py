"""What it costs to compare every loaded weight with its file: `python bench/loading.py`.

Prints seconds of transformers' loading, of the comparison, and of the whole stage "Loading the
model" (DeepSpeed's set-up included) for a Llama of 220 million parameters; files in the page cache.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers

from train.config import World, parse_args
from train.data.model_folder import read_model_config
from train.engine import weights
from train.engine.gang import connect
from train.engine.start import start
from train.planning import Plan, read_ds_config, render, shape_of

SIZES = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12,
         "num_attention_heads": 16, "vocab_size": 32000}  # fmt: skip


def main() -> None:
    """Measure each precision once, after a first load that fills the cache."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder = Path(tempfile.mkdtemp())
    config = transformers.LlamaConfig(**SIZES)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(
        folder
    )
    gang = connect(World(), os.environ)
    os.environ["LOCAL_RANK"] = "0"
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        for _ in range(2):
            began = time.perf_counter()
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
            loaded = time.perf_counter()
            weights.check_loaded(folder, model)
            checked = time.perf_counter()
        del model
        words = ["--model-name-or-path", str(folder), "--dataset-name-or-path", "d"]
        asked = parse_args([*words, "--precision", precision])
        plan = Plan(zero=1, micro_tokens=1024)
        shape = shape_of(read_model_config(folder))
        ds = read_ds_config(Path(__file__).parents[1] / "ds_configs/auto.json")
        zero = dict(render(plan, shape, asked.model, asked.optimizer, ds))
        first = time.perf_counter()
        start(gang, asked, folder, plan, zero)
        whole = time.perf_counter() - first
        check = checked - loaded
        print(
            f"{precision}: transformers {loaded - began:.2f} s, comparison {check:.2f} s, whole "
            f"stage {whole:.2f} s, of which the comparison is {check / whole:.1%}"
        )
    gang.close()


if __name__ == "__main__":
    main()
