"""The embedded preset: a dataset, a tokenizer and a small Mistral made from this interpreter.

The functions of the running Python's standard library, as instruction and answer; a SentencePiece
tokenizer trained on them; random weights. Nothing is downloaded and no module is imported: the
sources are parsed. The same interpreter gives the same rows.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import platform
import shutil
import sysconfig
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.errors import DataError
from train.locking import locked
from train.paths import unusable

VERSION = 2
PACKAGES = ("asyncio", "collections", "concurrent", "email", "http", "importlib", "json",
            "logging", "multiprocessing", "unittest", "urllib", "xml")  # fmt: skip
LINES = (3, 40)  # shortest and longest function, in lines of source
FEWEST = 500  # rows that the tokenizer can be trained on
CHARACTERS = 1500  # longest function
VOCABULARY = 2048
HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, HEAD = 128, 384, 2, 4, 2, 32
SPREAD = 0.02  # standard deviation of the initial weights

CONFIG: Mapping[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": HEAD,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": SPREAD,
    "intermediate_size": FFN,
    "max_position_embeddings": 4096,
    "model_type": "mistral",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}


@dataclass(frozen=True)
class Preset:
    """A Hugging Face folder with a tokenizer, and a .jsonl file of alpaca rows."""

    model: Path
    dataset: Path


def build_preset(cache: Path) -> Preset:
    """Return the embedded preset, made first if this user's cache does not hold it.

    Raises:
        DataError: this interpreter comes without the sources of its standard library.
        ConfigError: the cache cannot be written.
    """
    name = f"v{VERSION}-{platform.python_implementation().lower()}{platform.python_version()}"
    folder = cache.expanduser() / "preset" / name
    preset = Preset(folder / "mistral-tiny", folder / "standard-library.jsonl")
    if not folder.exists():
        try:
            with locked(folder.parent / f"{name}.lock"):
                if not folder.exists():
                    _build(folder)
        except OSError as error:
            raise unusable(cache, error) from None
    return preset


def _build(folder: Path) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model = partial / "mistral-tiny"
    model.mkdir(mode=0o700, parents=True)
    library = sysconfig.get_paths()["stdlib"]
    rows = library_rows(Path(library))
    if len(rows) < FEWEST:
        raise DataError(
            f"only {len(rows)} functions with docstrings were found in {library}, too few for the "
            "embedded preset: give --model-name-or-path and --dataset-name-or-path, or use a "
            "Python that has the sources of its standard library"
        )
    with (partial / "standard-library.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    _train_tokenizer(rows, model)
    _write_model(model)
    partial.rename(folder)


def library_rows(root: Path) -> tuple[Mapping[str, str], ...]:
    """Return alpaca rows of the functions with docstrings under a standard library's folder.

    Sorted by a hash of their content, so that any part of them is a fair sample.
    """
    paths = [*root.glob("*.py"), *(p for name in PACKAGES for p in (root / name).glob("*.py"))]
    found: dict[str, Mapping[str, str]] = {}
    for path in sorted(paths):
        for row in _rows(path.read_text(encoding="utf-8", errors="replace")):
            found.setdefault(hashlib.sha256(row["output"].encode()).hexdigest(), row)
    return tuple(row for _, row in sorted(found.items()))


def _rows(source: str) -> Iterator[Mapping[str, str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old escapes in strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # some modules of the library are wrong on purpose
        return
    lines = source.split("\n")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            row = _row(node, lines)
            if row is not None:
                yield row


def _row(node: ast.FunctionDef, lines: Sequence[str]) -> Mapping[str, str] | None:
    """Ask for a function by its signature and docstring; the answer is its source without it."""
    text = ast.get_docstring(node)
    end = node.end_lineno or node.lineno
    body = node.body[1:]
    if not text or not body or not LINES[0] <= end - node.lineno + 1 <= LINES[1]:
        return None
    indent = node.col_offset
    head = lines[node.lineno - 1 : node.body[0].lineno - 1]
    kept = [*head, *lines[(node.body[0].end_lineno or 0) : end]]
    output = "\n".join(line[indent:].rstrip() for line in kept)
    if len(output) > CHARACTERS or not output.startswith("def "):
        return None
    summary = " ".join(text.split("\n\n")[0].split())
    arguments = ", ".join(argument.arg for argument in node.args.args)
    return {
        "instruction": f"Write the Python function `{node.name}({arguments})`.",
        "input": summary,
        "output": output,
    }


def _train_tokenizer(rows: Sequence[Mapping[str, str]], folder: Path) -> None:
    from sentencepiece import SentencePieceTrainer

    from train.data.alpaca import ALPACA
    from train.data.tokenizer_sp import SentencePieceTokenizer

    texts = [ALPACA[1].format(**row) + row["output"] for row in rows]
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,  # a file's name would be written into the model
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_by_whitespace=True,
        allow_whitespace_only_pieces=True,
        max_sentence_length=1 << 16,
        num_threads=1,
        minloglevel=2,
    )
    path = folder / "tokenizer.model"
    path.write_bytes(model.getvalue())
    SentencePieceTokenizer.load(path).save(folder)


def _write_model(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file(_weights(), folder / "model.safetensors", metadata={"format": "pt"})
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    for name, content in (("config", CONFIG), ("generation_config", generation)):
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


def _weights() -> dict[str, NDArray[np.float32]]:
    """Return random weights under Mistral's names: matrices normal, norms one."""
    shapes = {"model.embed_tokens": (VOCABULARY, HIDDEN), "lm_head": (VOCABULARY, HIDDEN)}
    norms = ["model.norm"]
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        norms += [f"{name}.input_layernorm", f"{name}.post_attention_layernorm"]
        shapes |= {
            f"{name}.self_attn.q_proj": (HEADS * HEAD, HIDDEN),
            f"{name}.self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
            f"{name}.self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
            f"{name}.self_attn.o_proj": (HIDDEN, HEADS * HEAD),
            f"{name}.mlp.gate_proj": (FFN, HIDDEN),
            f"{name}.mlp.up_proj": (FFN, HIDDEN),
            f"{name}.mlp.down_proj": (HIDDEN, FFN),
        }
    random = np.random.default_rng(VERSION)
    weights = {f"{name}.weight": np.ones(HIDDEN, np.float32) for name in norms}
    for name, shape in shapes.items():
        values = random.standard_normal(shape, dtype=np.float32) * np.float32(SPREAD)
        weights[f"{name}.weight"] = values
    return weights
