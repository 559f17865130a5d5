"""One sample that is too long for a rank's memory: two ranks share it, and the plan says so."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from tests.support.ranks import together
from train.config import parse_args
from train.data.feed import step_batch
from train.engine import start as engines
from train.engine.gang import Gang
from train.errors import PlanError
from train.hosts.memory import left_by_limits
from train.loop import NoSaver
from train.output.console import Console
from train.run import inputs, session
from train.run.planning import PlannedRun, choose_plan
from train.run.resume import Resumed

TOKENS, LIMIT = 3072, 330 * 2**20
WORDS = "--batch-size 1 --max-steps 1 --precision fp32 --ds-config ds_configs/auto.json "
WORDS += f"--block-size {TOKENS} --pin zero=1 recompute=none"


def limit(to: int | None) -> None:
    """Let this process take so many bytes more than it has, as `ulimit -d` does; None: any."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    if to is not None:
        status = Path("/proc/self/status").read_text()
        held = 1024 * int(status.partition("VmData:")[2].split()[0])
        resource.setrlimit(resource.RLIMIT_DATA, (held + to, hard))


def train(gang: Gang, folder: Path) -> None:
    """Plan and take a step within the limit; where no plan fits, also with the plan without one."""
    quiet, said = Console(False), ""
    words = ["--model-name-or-path", str(folder / "model"), *WORDS.split()]
    config = parse_args([*words, "--dataset-name-or-path", str(folder / "long.jsonl")])
    source, data = inputs.open_data(inputs.locate(config, folder, quiet), folder, quiet)
    limit(LIMIT)
    try:
        planned = choose_plan(source, data, gang, quiet)
    except PlanError as error:
        said = str(error)
        limit(None)
        planned = choose_plan(source, data, gang, quiet)
        limit(LIMIT)
    try:
        found = step(gang, source, data, planned)
    except RuntimeError as error:
        found = str(error)
    limit(None)
    if gang.world.is_main:
        out = folder / f"{gang.world.size}.json"
        out.write_text(json.dumps([said, planned.plan.sp, found]))


def step(gang: Gang, source, data, planned: PlannedRun) -> float:
    engine = engines.start(gang, source.config, source.model, planned.plan, dict(planned.zero))
    job = session.training_job(source, data, planned, engine, Resumed(NoSaver(), 0, False))
    batch = step_batch(job.train, 0, 1, 0, job.placement)
    assert batch.tokens == TOKENS
    return engine.step(0, batch.micros, batch.loss_tokens, 1e-4).loss


def test_a_sample_too_long_for_one_rank_trains_on_two_and_the_plan_says_so(preset, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 192, "intermediate_size": 384, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None}
    config = MistralConfig(vocab_size=2048, max_position_embeddings=TOKENS, **sizes, **heads)
    MistralForCausalLM(config).save_pretrained(tmp_path / "model")
    for path in preset.model.iterdir():
        if "token" in path.name:
            shutil.copy(path, tmp_path / "model")
    text = preset.dataset.read_text().replace("\n", " ")
    rows = [json.dumps({"text": text[n * 10**4 :][:30000]}) for n in range(24)]
    (tmp_path / "long.jsonl").write_text("\n".join(rows))
    for ranks in (1, 2):
        together(ranks, train, tmp_path, timeout=300)
    alone, shared = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2))
    assert alone[0].startswith("nothing fits: the smallest plan needs ")
    assert "on each cpu, which has 0.3" in alone[0]
    assert alone[1] == 1 and "memory" in alone[2]
    assert shared[:2] == ["", 2]
    assert shared[2] == pytest.approx(7.6, abs=0.3)


def test_a_processs_own_limit_counts():
    limit(10**8)
    try:
        assert left_by_limits() == pytest.approx(10**8, rel=0.05)
    finally:
        limit(None)
