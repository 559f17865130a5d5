"""Files changed at random: whatever a model's files hold, a run begins or says why not.

    python -m tests.support.model_mutations [config.json tokenizer.json …] [--count 300] [--seed 0]

Each mutation is tried in a process of its own, up to the first forward of the loaded model. It is
right if that works, or ends with one sentence for the user; a traceback, a fault, a dead process or
more than a minute is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from train.errors import UserError

FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model")
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 10**12, 1.5, float("nan"), "", "x", "é\n", [], {}, [1],
    {"a": 1}, [None], "1e9", -7.5, ["<s>"], "</s>",
)  # fmt: skip
PATIENCE = 60  # seconds


def mutate(content: bytes, draw: random.Random) -> bytes:
    """Return the content with one to three changes; JSON is mostly changed as such."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        try:
            value = json.loads(content)
        except ValueError:
            value = None
        if value is not None and draw.random() < 0.8:
            content = json.dumps(_change(value, draw)).encode()
        else:
            content = _damage(content, draw)
    return content


def _change(value: Any, draw: random.Random) -> Any:
    """Put something odd in a place of a JSON value, remove it, double it or swap it."""
    places = list(_places(value))
    if not places:
        return draw.choice(ODD)
    holder, key = draw.choice(places)
    act = draw.randrange(6)
    if act == 0 and isinstance(holder, dict):
        del holder[key]
    elif act == 1 and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif act == 2:
        other, there = draw.choice(places)
        holder[key] = json.loads(json.dumps(other[there]))
    elif act == 3 and isinstance(holder[key], int):
        holder[key] += draw.choice((-1, 1, 1000, -holder[key]))
    else:
        holder[key] = draw.choice(ODD)
    return json.loads(json.dumps(value))


def _places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Yield each place of a value, those of long lists and tables seldom."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    for key in keys if len(keys) < 40 else keys[:: len(keys) // 4]:
        yield value, key
        if isinstance(value[key], dict | list) and depth < 5:
            yield from _places(value[key], depth + 1)


def _damage(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(max(1, len(content)))
    act = draw.randrange(5)
    if act == 0:
        return content[:at]
    if act == 1:
        return content[:at] + draw.randbytes(draw.randrange(1, 9)) + content[at:]
    if act == 2:
        return content[:at] + draw.randbytes(1) + content[at + 1 :]
    if act == 3:
        return content[:at] + content[at + draw.randrange(1, 40) :]
    return b"" if draw.random() < 0.2 else content[:at] + content[at // 2 :]


def outcome(act: Callable[[], None]) -> str:
    """Try something in a process of its own; return `ok`, `refused: …`, or what is wrong."""
    end, start = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        os.write(start, _tried(act).encode()[:4000])
        os._exit(0)
    os.close(start)
    with os.fdopen(end, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return said if status == 0 and said else f"the process ended with {status}"


def _tried(act: Callable[[], None]) -> str:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(PATIENCE)
    try:
        act()
    except UserError as error:
        return f"refused: {error}"
    except BaseException:
        return traceback.format_exc()
    return "ok"


def right(said: str) -> bool:
    """Whether it worked, or was refused in one line that fits on a screen."""
    return said == "ok" or (
        said.startswith("refused: ") and "\n" not in said and 30 < len(said) < 1000
    )


def trial(folder: Path, data: Path, cache: Path) -> None:
    """Do what a start does with a model's folder, up to one forward on two samples."""
    import torch

    from train.config import parse_args
    from train.data.batch import collate
    from train.engine import model as models
    from train.engine.inputs import packed_inputs, padded_inputs
    from train.output.console import Console
    from train.run import inputs
    from train.run.planning import check_vocabulary

    words = ["--model-name-or-path", str(folder), "--dataset-name-or-path", str(data)]
    words += ["--batch-size", "2", "--block-size", "64", "--precision", "fp32"]
    quiet = Console(False)
    found = inputs.locate(parse_args(words), cache, quiet)
    found, opened = inputs.open_data(found, cache, quiet)
    check_vocabulary(found, opened)
    zero: dict[str, Any] = {"zero_optimization": {"stage": 0}}
    loaded = models.load(found.model, found.config.model, zero, torch.device("cpu"), 0, longest=64)
    lay = packed_inputs if loaded.packed else padded_inputs
    with torch.no_grad():
        loaded.module(**lay(collate(opened.train, [0, 1]), torch.device("cpu")).arguments)


def folders(root: Path) -> dict[str, Path]:
    """Make a Llama with a tokenizer.json and one with a tokenizer.model; return them by file."""
    import sentencepiece
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    texts = [f"the quick brown fox {n} jumps over {n * 7} lazy dogs" for n in range(200)]
    fast, slow = root / "fast", root / "slow"
    for folder in (fast, slow):
        LlamaForCausalLM(config).save_pretrained(folder)
    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    own.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=390, special_tokens=special, initial_alphabet=alphabet),
    )
    own.save(str(fast / "tokenizer.json"))
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    listed = {str(n): {"content": name, "special": True} for n, name in enumerate(special)}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": special[0],
                "pad_token": special[0], "bos_token": None, "chat_template": template,
                "added_tokens_decoder": listed, "model_max_length": 128}  # fmt: skip
    (fast / "tokenizer_config.json").write_text(json.dumps(settings))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(slow / "tokenizer"), vocab_size=310,
        model_type="bpe", byte_fallback=True, minloglevel=2, num_threads=1,
    )  # fmt: skip
    return {name: slow if name.endswith(".model") else fast for name in FILES}


def run(name: str, count: int, seed: int, root: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and the outcome of each mutation of a file."""
    base = folders(root)[name]
    data = root / "data.jsonl"
    turns = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "jumps"}]
    data.write_text((json.dumps({"messages": turns}) + "\n") * 6)
    content = (base / name).read_bytes()
    for number in range(count):
        draw = random.Random(f"{seed} {name} {number}")
        folder, cache = root / "mutated", root / "cache"
        for path in (folder, cache):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(base, folder)
        (folder / name).write_bytes(mutate(content, draw))
        yield number, outcome(lambda: trial(folder, data, cache))  # noqa: B023


def main() -> None:
    """Print what is wrong, and a line of counts for each file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="*", default=FILES)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import torch

    import train.engine.model  # noqa: F401  (once, before the processes are forked)

    torch.set_num_threads(1)
    wrong = 0
    for name in asked.files:
        with tempfile.TemporaryDirectory() as folder:
            found = list(run(name, asked.count, asked.seed, Path(folder)))
        bad = [(number, said) for number, said in found if not right(said)]
        for number, said in bad:
            print(f"--- {name} {number}:\n{said}")
        good = sum(said == "ok" for _, said in found)
        print(f"{name}: {len(found)} mutations, {good} run, {len(found) - good - len(bad)} refused")
        wrong += len(bad)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
