"""Shared by all tests: the repository on the path, no network, a small model and ragged data."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Workers share the cores; where threads are more than these, they wait for one another by spinning.
os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in "COLUMNS", "LINES":  # a worker's, which has no terminal
    os.environ.pop(name, None)


# What a test needs, by its place or by its own mark; every other test is `fast`.
MARKERS = {
    "cluster": ("tests/cluster/",),
    "ranks": (
        "tests/engine/test_invariance.py", "tests/engine/test_checkpoint_pairs.py",
        "tests/engine/test_checkpoint_runs.py", "tests/engine/test_fp16.py",
        "tests/engine/test_tensor.py", "tests/engine/test_stopping.py",
        "tests/test_main.py", "tests/test_ending.py", "tests/test_resizing.py",
        "tests/test_examples.py", "tests/test_install.py",
        "tests/test_first_gpu.py",
    ),
    "torch": (
        "tests/engine/", "tests/run/test_planning.py", "tests/run/test_preference.py",
        "tests/run/test_resume.py", "tests/run/test_session.py",
    ),
    "slow": (
        "tests/launch/test_supervise.py", "tests/launch/test_pause.py",
        "tests/launch/test_resize.py", "tests/launch/test_regrow.py",
        "tests/launch/test_free.py", "tests/launch/test_sbatch.py",
        "tests/launch/test_owner.py", "tests/commands/test_prepare.py",
        "tests/launch/test_launch_sh.py", "tests/hosts/test_probe.py",
        "tests/hosts/test_streams.py", "tests/data/test_blocks.py", "tests/data/test_preset.py",
    ),
}  # fmt: skip
# The files that take longest, which are begun first: one of them at the end is waited for alone.
LONGEST = (
    "tests/engine/test_invariance.py", "tests/launch/test_resize.py",
    "tests/engine/test_numerics.py", "tests/engine/test_stopping.py", "tests/launch/test_regrow.py",
    "tests/test_first_gpu.py", "tests/engine/test_checkpoint_pairs.py",
    "tests/engine/test_tensor.py", "tests/engine/test_checkpoint_runs.py", "tests/test_resizing.py",
    "tests/engine/test_model.py", "tests/launch/test_pause.py", "tests/test_examples.py",
    "tests/engine/test_kernels.py", "tests/launch/test_supervise.py", "tests/test_ending.py",
    "tests/test_install.py", "tests/engine/test_kept_memory.py", "tests/engine/test_replica.py",
    "tests/engine/test_compiled.py", "tests/engine/test_model_mutations.py",
    "tests/launch/test_owner.py", "tests/engine/test_pipeline.py", "tests/test_main.py",
    "tests/hosts/test_probe.py", "tests/hosts/test_hostfile.py", "tests/data/test_tokenizer.py",
    "tests/engine/test_long_sample.py", "tests/commands/test_prepare.py",
    "tests/planning/test_search.py", "tests/commands/test_plan.py", "tests/launch/test_free.py",
)  # fmt: skip
# What small tokenizers are trained on.
TEXTS = [
    f"{word} the quick brown fox {number} jumps over the lazy dog; ### Instruction: Response:\n"
    for number in range(40)
    for word in ("User", "Assistant", "Below", "Write", "hello", "world", "é", "x = y + 1")
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """What takes long is asked for."""
    parser.addoption("--exhaustive", action="store_true", help="every rank count, stage and pair")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where only fast tests are asked for, the files of others are not even imported."""
    if config.option.markexpr != "fast" or not collection_path.is_relative_to(ROOT):
        return None
    place = collection_path.relative_to(ROOT).as_posix()
    return any(place.startswith(starts) for starts in MARKERS.values()) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by its place, and bring the long ones to the front."""
    items.sort(key=lambda item: [*LONGEST, place_of(item)].index(place_of(item)))
    for item in items:
        place = place_of(item)
        found = (name for name, starts in MARKERS.items() if place.startswith(starts))
        if not any(item.get_closest_marker(name) for name in MARKERS):
            item.add_marker(next(found, "fast"))


def place_of(item: pytest.Item) -> str:
    """Return a test's file, from the repository's folder on."""
    return item.path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of this session, the same for all of its workers."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "shared-cache"


@pytest.fixture(scope="session")
def preset(shared_cache: Path):
    """The embedded preset: functions of the standard library and a tokenizer trained on them."""
    from train.data.preset import build_preset

    return build_preset(shared_cache)


@pytest.fixture(scope="session")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model file, made in a moment."""
    from sentencepiece import SentencePieceTrainer

    folder = tmp_path_factory.mktemp("pieces")
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(folder / "tokenizer"), vocab_size=400,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return folder / "tokenizer.model"


@pytest.fixture(scope="session")
def ragged(preset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred rows of the preset's data."""
    path = tmp_path_factory.mktemp("ragged") / "functions.jsonl"
    path.write_text("".join(preset.dataset.read_text().splitlines(keepends=True)[:420]))
    return path


@pytest.fixture(scope="session")
def tiny(preset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Mistral with random weights, grouped heads and a window shorter than samples."""
    return mistral(tmp_path_factory.mktemp("models") / "tiny", preset.model, layers=2)


@pytest.fixture(scope="session")
def deep(preset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of twelve layers: what it keeps for the backward pass is what needs memory."""
    return mistral(tmp_path_factory.mktemp("models") / "deep", preset.model, layers=12)


# With two layers more than ten million elements: what is summed in fp32 is off by 1e-4 there.
LARGE = {"hidden_size": 384, "intermediate_size": 512, "vocab_size": 12288}


def mistral(folder: Path, tokenizer: Path, layers: int, **sizes: int) -> Path:
    import shutil

    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "vocab_size": 2048} | sizes
    config = MistralConfig(
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2, sliding_window=64,
        max_position_embeddings=1024, **sizes,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(folder)
    for path in tokenizer.iterdir():
        if "token" in path.name:
            shutil.copy(path, folder)
    return folder
