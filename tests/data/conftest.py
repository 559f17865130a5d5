"""A small real tokenizer, made once for all data tests: byte-level BPE with a ChatML template."""

import dataclasses
import json
from pathlib import Path

import pytest

from tests.conftest import TEXTS
from train.config import DataConfig, ModelConfig
from train.data.open import open_dataset
from train.data.source import DataSource, find_source
from train.names import read_names

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def sought(text: object) -> DataSource:
    """Find the one dataset that a text names."""
    (name,) = read_names(str(text))
    return find_source(name, Path("unused"))


@pytest.fixture(scope="session")
def chatml(tmp_path_factory):
    """A Hugging Face folder: byte-level BPE that adds no BOS, ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet),
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    made.chat_template = CHATML
    folder = tmp_path_factory.mktemp("chatml")
    made.save_pretrained(folder)
    return folder


@pytest.fixture
def write(tmp_path):
    """Write a data file from a list of rows, a text or bytes; return its path."""

    def write(content, name="data.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def opened(tmp_path):
    """Open a dataset with a tokenizer; keywords change the data settings."""

    def opened(path, tokenizer, cache=None, template=None, **changes):
        config = DataConfig(str(path), None, False, 4, 128, 0)
        config = dataclasses.replace(config, **changes)
        model = ModelConfig("unused", str(tokenizer), "fp32", None, False, template)
        return open_dataset(config, model, cache or tmp_path / "cache")

    return opened
