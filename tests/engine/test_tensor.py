"""Matrices divided among tensor ranks: every step is the step of one rank, for every family."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.conftest import mistral
from tests.engine import tensor_worker as worker
from tests.engine.families import FAMILIES, family
from tests.engine.tensor_worker import LORA, Job
from tests.support.ranks import together
from train.engine import hollow
from train.engine.divide import divided_modules, held_of, hold
from train.engine.mesh import Mesh
from train.planning.tensor import FAMILIES as DIVIDED

FP32, BF16 = 1e-6, 2e-3
EQUAL = ("step", "lr", "samples", "loss_tokens", "tokens", "sample_hash")
JOBS = {
    2: [Job("llama", "tp=2 zero=0"), Job("qwen2", "tp=2 zero=3 recompute=full", LORA),
        Job("phi3", "tp=2 zero=1", LORA), Job("gemma2", "tp=2 zero=2", "--batch-size 1")],
    4: [Job("qwen2", "tp=4 zero=1", "--batch-size 3"), Job("llama", "tp=2 zero=3"),
        Job("starcoder2", "tp=2 pp=2 zero=1"), Job("qwen3", "tp=2 zero=2", "--precision bf16")],
}  # fmt: skip


def everything() -> dict[int, list[Job]]:
    """Every family at every degree, each of the rest at some of them."""
    kinds, ways = list(FAMILIES), ["", LORA, "--batch-size 1", "--precision bf16"]
    found: dict[int, list[Job]] = {}
    for ranks, layouts in {
        2: ["tp=2"], 3: ["tp=3"], 4: ["tp=4", "tp=2", "tp=2 sp=2", "tp=2 pp=2"],
        6: ["tp=3", "tp=6"],
        8: ["tp=2 pp=2", "tp=4"],
    }.items():  # fmt: skip
        for layout in layouts:
            for number, kind in enumerate(kinds):
                for way, words in enumerate(ways[: 4 if ranks < 6 else 1]):
                    stage = 1 if "pp" in layout or "bf16" in words else (number + way) % 4
                    again = ("none", "full", "selective")[(number + way) % 3]
                    heads = FAMILIES[kind].get("num_key_value_heads", 3)
                    if kind != "phi3" or heads % int(layout[3]) == 0:
                        pins = f"{layout} zero={stage} recompute={again}"
                        found.setdefault(ranks, []).append(Job(kind, pins, words))
    return found


@pytest.fixture(scope="module")
def runs(preset, ragged, tmp_path_factory, request):
    """Steps by job, and those of one rank by family and words."""
    out = tmp_path_factory.mktemp("tensor")
    jobs = everything() if request.config.getoption("--exhaustive") else JOBS
    for kind in {job.family for some in jobs.values() for job in some}:
        family(kind, out / kind, preset.model)
    alone = {(job.family, job.words_alone) for some in jobs.values() for job in some}
    named = [(" ".join(one), *one) for one in sorted(alone)]
    together(1, worker.train, named, ragged, out, timeout=1800)
    base = json.loads((out / "tensor1.json").read_text())
    found = {}
    for ranks, some in jobs.items():
        words = [(job.name, job.family, f"{_pins(job)} {job.full}") for job in some]
        together(ranks, worker.train, words, ragged, out, timeout=7200)
        steps = json.loads((out / f"tensor{ranks}.json").read_text())
        found |= {
            (ranks, job): (steps[job.name], base[f"{job.family} {job.words_alone}"]) for job in some
        }
    return found


def _pins(job: Job) -> str:
    return job.pins if "recompute" in job.pins else f"recompute=none {job.pins}"


def test_invariance_over_tensor_ranks(runs, capsys):
    """Fails where a gradient lacks the part of another rank, or a rank holds what is not its."""
    table = {}
    for (ranks, job), (steps, base) in runs.items():
        for one, other in zip(steps[:-1], base[:-1], strict=True):
            assert [one[key] for key in EQUAL] == [other[key] for key in EQUAL]
        pairs = zip(steps, base, strict=True)  # the last is an evaluation
        table[ranks, job] = max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in pairs)
        assert base[-2]["loss"] < base[0]["loss"]
        assert "bf16" in job.words or steps[-1]["told"] == base[-1]["told"], job.name
    with capsys.disabled():
        print("\n\nlargest relative difference of a loss from one rank, over tensor ranks")
        for (ranks, job), value in table.items():
            print(f"{ranks:>5}  {job.name:<70} {value:7.1e}")
    for (_, job), value in table.items():
        assert value <= (BF16 if "bf16" in job.words else FP32), job.name


def test_a_layer_sends_four_sums_and_five_where_it_is_recomputed(preset, ragged, tmp_path):
    out = tmp_path
    for layers in (2, 4):
        mistral(out / f"deep{layers}", preset.model, layers=layers)
    ways = [f"tp=2 zero=1 recompute={mode} --precision fp32 --batch-size 5"
            for mode in ("none", "selective", "full")]  # fmt: skip
    together(2, worker.count, ways, ["deep2", "deep4"], ragged, out)
    found = json.loads((out / "counted.json").read_text())
    a_layer = [(found[f"{way} deep4"] - found[f"{way} deep2"]) / 2 for way in ways]
    assert a_layer == [4, 4, 5]


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_rank_reads_its_regions_alone_and_makes_the_buffers_that_loading_makes(
    kind, preset, tmp_path
):
    folder = family(kind, tmp_path / kind, preset.model)
    whole = load_file(folder / "model.safetensors")
    wanted = AutoModelForCausalLM.from_pretrained(folder)
    sizes, shares = dict.fromkeys(whole, 0), 0
    for rank in range(3):
        mesh = Mesh(rank, 1, tp=3)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        held = hold(model, divided_modules(model, mesh), mesh)
        zero = {"zero_optimization": {"stage": 1}}
        read = hollow.fill(model, folder, held, zero, torch.device("cpu"), mesh)
        own = 0
        for name, parameter in model.named_parameters():
            cut = held_of(parameter).cut
            expected, size = whole[name], parameter.numel()
            if cut is not None:
                pieces = [expected.narrow(cut.dimension, a, b - a) for a, b in cut.parts]
                expected = torch.cat(pieces, cut.dimension)
                sizes[name] += size
            assert torch.equal(parameter, expected), name
            own += size * 4
        assert read <= 1.05 * own
        shares += read
        for name, buffer in wanted.named_buffers():
            assert torch.equal(buffer, model.get_buffer(name)), name
    assert {n for n in sizes if sizes[n]} == {n for n in sizes if sizes[n] == whole[n].numel()}
    assert shares < 2 * sum(tensor.numel() for tensor in whole.values()) * 4


def test_the_families_that_are_divided_are_those_that_are_compared():
    assert set(DIVIDED) == set(FAMILIES)
