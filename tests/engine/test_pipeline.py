"""Models cut into stages against whole ones, and the order of passes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import transformers

from tests.engine import test_model as models
from tests.support.ranks import together
from train.data.feed import Placement, step_batch
from train.engine.mesh import mesh_of
from train.engine.pipeline import Neighbours, Pass, forward_only, passes
from train.engine.stages import can_cut
from train.engine.start import start
from train.planning import Plan, read_ds_config, render, shape_of
from train.planning.plan import stage_layers

PACKED = [name for name in models.FAMILIES if name != "bloom"]
WORDS = {"phi": "--use-lora --lora-dropout 0.2", "gemma": "--max-grad-norm 0.1"}
RECOMPUTE = {"llama": "full", "qwen2": "selective", "phi": "full"}


def engine(gang, folder: Path, name: str, pp: int):
    config = models.configured(folder, WORDS.get(name, ""))
    zero, dp = PACKED.index(name) % 2, gang.world.size // pp
    layout = Plan(zero, 100, RECOMPUTE.get(name, "none"), dp=dp, pp=pp)
    shape = shape_of(json.loads((folder / "config.json").read_text()))
    ds = read_ds_config(Path(__file__).resolve().parents[2] / "ds_configs" / "auto.json")
    rendered = render(layout, shape, config.model, config.optimizer, ds)
    return start(gang, config, folder, layout, rendered)


def losses(running) -> list[float]:
    """Losses and gradient norms of three steps, and what an evaluation finds."""
    layout = Placement(running.mesh.data, running.mesh.ranks, 100)
    found = []
    for step in range(3):
        batch = step_batch(models.SPLIT, 0, 8, step, layout)
        done = running.step(step, batch.micros, batch.loss_tokens, 1e-3)
        found += [done.loss, done.grad_norm]
    held = [step_batch(models.SPLIT, 0, batch, 9, layout).micros for batch in (1, 5)]
    total, tokens = running.evaluate(iter(held))
    told = [running.next_token(models.SPLIT.sample(number)[0]) for number in (0, 3)]
    return [*found, total / tokens, tokens, *told]


def train(gang, folders: dict[str, Path], pp: int, out: Path) -> None:
    found = {}
    for name, folder in folders.items():
        running = engine(gang, folder, name, pp)
        held = sum(p.numel() for p in running.model.module.parameters())
        found[name] = losses(running), gang.gather(held)
        running.deepspeed.destroy()
    if gang.world.is_main:
        (out / f"{gang.world.size}-{pp}.json").write_text(json.dumps(found))


def test_stages_train_every_family_as_one_rank_does(tmp_path, request):
    folders = {name: models.make(name, tmp_path / name) for name in PACKED}
    tried = [(1, 1), (2, 2)] + (
        [(4, 2), (6, 2)] if request.config.getoption("--exhaustive") else []
    )
    for ranks, pp in tried:
        together(ranks, train, folders, pp, tmp_path, timeout=400)
    found = {(n, pp): json.loads((tmp_path / f"{n}-{pp}.json").read_text()) for n, pp in tried}
    for name in PACKED:
        whole, (held,) = found[1, 1][name]
        for at in tried[1:]:
            stages, parts = found[at][name]
            assert stages[:1] == pytest.approx(whole[:1], rel=1e-6), name
            # One step moves these losses by a tenth, and rounding with it.
            assert stages == pytest.approx(whole, rel=1e-5), name
            assert at[1] == 1 or max(parts) < 0.8 * held, f"{name}: a stage holds {parts} of {held}"


def test_a_family_that_cannot_be_cut_is_known():
    assert not can_cut(models.FAMILIES["bloom"])
    assert can_cut(transformers.Starcoder2Config(**models.SIZE))
    assert can_cut(transformers.OlmoConfig(**models.SIZE))  # its last norm has no parameters
    rows = {"n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 128}
    assert not can_cut(transformers.GPT2Config(**rows))  # its positions are of no stage


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
@pytest.mark.parametrize("micros", [1, 2, 4, 9])
def test_passes_end_where_every_exchange_waits_for_its_other_side(stages, micros):
    orders = [passes(stage, stages, micros) for stage in range(stages)]
    for stage, order in enumerate(orders):
        assert sorted(p.micro for p in order if not p.back) == list(range(micros))
        assert [p.micro for p in order if p.back] == list(range(micros))
        ahead, most = 0, 0
        for one in order:
            ahead += -1 if one.back else 1
            most = max(most, ahead)
        assert most == min(micros, stages - stage)
    for some in (orders, [forward_only(micros)] * stages):
        assert stuck(some) == []


def stuck(orders) -> list[int]:
    """The stages that wait for ever, where an exchange ends when all its other sides have begun."""
    layout = Plan(zero=0, micro_tokens=1, pp=len(orders))
    links = [Neighbours(mesh_of(rank, layout), None, None, ()) for rank in range(len(orders))]
    batches = []
    for link, order in zip(links, orders, strict=True):
        pairs = zip((None, *order), (*order, None), strict=True)
        batches.append([exchange(link, now, after) for now, after in pairs])
    at, moved = [0] * len(orders), True
    while moved:
        moved = False
        for rank, own in enumerate(batches):
            if at[rank] < len(own) and all(begun(batches, at, one) for one in own[at[rank]]):
                at[rank], moved = at[rank] + 1, True
    return [rank for rank, own in enumerate(batches) if at[rank] < len(own)]


def exchange(link, now: Pass | None, after: Pass | None) -> list[tuple]:
    """What is sent and received between two passes: (kind, from, to, pass)."""
    rank = link.mesh.rank
    to, source = link._peer(now, receives=False), link._peer(after, receives=True)
    sent = [("send", rank, to, now)] if to is not None else []
    return sent + ([("receive", source, rank, after)] if source is not None else [])


def begun(batches, at, one) -> bool:
    kind, source, to, what = one
    peer, other = (to, "receive") if kind == "send" else (source, "send")
    reached = batches[peer][: at[peer] + 1]
    return any((other, source, to, what) in batch for batch in reached)


def test_layers_are_divided_evenly_and_in_order():
    assert [list(part) for part in stage_layers(5, 3)] == [[0, 1], [2, 3], [4]]
    assert [len(part) for part in stage_layers(4, 4)] == [1] * 4


def test_stages_of_a_plan_keep_its_name():
    assert replace(Plan(zero=1, micro_tokens=8), pp=2).to_json()["pp"] == 2
