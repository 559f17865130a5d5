"""What ranks do in the tests of checkpoints: train and save, or load and compare."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
from safetensors import safe_open

from train.checkpoint.cut import Cut
from train.checkpoint.folder import complete
from train.checkpoint.identity import RunFingerprint
from train.checkpoint.index import Index, read_index
from train.checkpoint.slices import BLOCK, STATE
from train.config import World, parse_args
from train.engine import start as engines
from train.engine import zero
from train.engine.divide import held_of
from train.engine.gang import Gang
from train.engine.restore import restore
from train.engine.saver import Saver
from train.engine.step import Engine
from train.launch.stopping import StopRequests
from train.loop import NoSaver, Outputs, TrainingJob
from train.loop import fit as train
from train.output.console import Console
from train.output.trackers import NoTracker
from train.run import inputs, session
from train.run.planning import choose_plan
from train.run.resume import Resumed, fingerprint_of

SAVED, TOTAL = 4, 6
BASE = f"--batch-size 13 --block-size 96 --max-steps {TOTAL} --save-step {SAVED} --keep 9 "
BASE += "--lr 2e-3 --lr-schedule linear --warmup-steps 2 --weight-decay 0.1 --precision fp32 "
BASE += "--ds-config ds_configs/auto.json --pin micro_tokens=400 recompute=none "
VARIANTS = {
    **{f"zero{z}": f"zero={z} offload=none" for z in range(4)},
    **{f"lora{z}": f"zero={z} offload=none --use-lora --lora-dropout 0.1" for z in range(4)},
    **{f"bf16-zero{z}": f"zero={z} offload=none --precision bf16" for z in (1, 2, 3)},
    **{f"fp16-zero{z}": f"zero={z} offload=none --precision fp16" for z in (1, 2, 3)},
    **{f"offload{z}": f"zero={z} offload=optimizer" for z in (1, 2, 3)},
    **{f"sp2-zero{z}": f"zero={z} offload=none sp=2" for z in (1, 3)},
    **{f"pp2-zero{z}": f"zero={z} offload=none pp=2" for z in (0, 1)},
    **{f"tp{t}-zero{z}": f"zero={z} offload=none tp={t}" for t in (2, 4) for z in range(4)},
    **{f"tp2-pp2-zero{z}": f"zero={z} offload=none tp=2 pp=2" for z in (0, 1)},
    "offload-all": "zero=3 offload=all",
    "hpz": "zero=3 offload=none --ds-config tests/engine/hpz.json",
}


@dataclass(frozen=True)
class Running:
    """An engine at step 0 with its job."""

    engine: Engine
    job: TrainingJob
    fingerprint: RunFingerprint


def start(gang: Gang, variant: str, model: str, data: str, out: Path) -> Running:
    words = ["--model-name-or-path", model, "--dataset-name-or-path", data]
    config = parse_args([*words, *BASE.split(), *VARIANTS[variant].split()])
    quiet = Console(False)
    source = inputs.locate(config, out, quiet)
    source, samples = inputs.open_data(source, out / "cache", quiet)
    planned = choose_plan(source, samples, gang, quiet)
    engine = engines.start(gang, config, source.model, planned.plan, dict(planned.zero))
    job = session.training_job(source, samples, planned, engine, Resumed(NoSaver(), 0, False))
    own = fingerprint_of(source, samples, planned.plan, gang.world.size)
    return Running(engine, job, own)


def fit(running: Running, start: int, saver: Saver | None = None) -> list[dict[str, Any]]:
    """Train from step `start` to the end; return what must be equal of each step, and the loss."""
    job = replace(running.job, start=start)
    out = Outputs(Console(False), None, NoTracker(), Path())
    unasked = StopRequests(World(), sys.exit)
    records = train(running.engine, job, out, saver or NoSaver(), unasked)
    return [{"loss": r.loss, "hash": r.sample_hash, "lr": r.lr, "step": r.step} for r in records]


def save(gang: Gang, variants: Sequence[str], model: str, data: str, out: Path) -> None:
    """Train each variant from the beginning to the end, saving into out/<ranks>-<variant>."""
    for variant in variants:
        running = start(gang, variant, model, data, out)
        run = out / f"{gang.world.size}-{variant}"
        attempt = run / "attempts" / "0001"
        gang.on_main(lambda attempt=attempt: attempt.mkdir(parents=True))
        records = fit(running, 0, Saver(running.engine, run, attempt, running.fingerprint, keep=9))
        if gang.world.is_main:
            (run / "records.json").write_text(json.dumps(records))
        running.engine.deepspeed.destroy()


def resume(gang: Gang, pairs: Sequence[tuple[str, str]], model: str, data: str, out: Path) -> None:
    """For each pair (run, variant): load the run's checkpoint under the variant and go on."""
    found: dict[str, Any] = {}
    for variant in sorted({variant for _, variant in pairs}):
        running = start(gang, variant, model, data, out)
        for run in [run for run, wanted in pairs if wanted == variant]:
            folder = complete(out / run)[-1]
            index = read_index(folder)
            read = restore(running.engine, folder, index)
            equal = all(gang.gather(is_equal(running.engine, folder)))
            if "tp" in variant:
                equal = equal and saves_the_same(running, folder, out / f"again {run} {variant}")
            found[f"{run} {variant}"] = {
                "equal": equal,
                "read": read,
                "allowed": at_most(running.engine, folder, index),
                "records": fit(running, SAVED),
            }
        running.engine.deepspeed.destroy()
    if gang.world.is_main:
        (out / f"resumed-{gang.world.size}.json").write_text(json.dumps(found))


def saves_the_same(running: Running, folder: Path, run: Path) -> bool:
    """Whether the state that was loaded from a checkpoint is saved bit for bit, in other slices."""
    gang, attempt = running.engine.gang, run / "attempts" / "0001"
    gang.on_main(lambda: attempt.mkdir(parents=True))
    saver = Saver(running.engine, run, attempt, running.fingerprint, keep=9)
    saver.save(SAVED)
    saver.wait()

    def compare() -> bool:
        before, after = assembled(folder), assembled(complete(run)[-1])
        return before.keys() == after.keys() and all(
            torch.equal(before[key], after[key]) for key in before
        )

    return gang.from_main(compare)


def at_most(engine: Engine, folder: Path, index: Index) -> int:
    """The bytes of a checkpoint, and for each stretch that a rank reads two blocks begun by it.

    A stretch is a piece of a rank, or a part of one where it goes from one file on to the next.
    """
    stretches = sum(engine.gang.gather(len(zero.local_shards(engine))))
    stretches += sum(len(entry.slices) for entry in index.tensors.values())
    size = sum(path.stat().st_size for path in folder.iterdir())
    # Rows of so small matrices are shorter than a block: a part of each is in every block.
    size *= engine.mesh.tp * max(len({one.cut for one in e.slices}) for e in index.tensors.values())
    return size + 2 * BLOCK * len(STATE) * stretches


def is_equal(engine: Engine, folder: Path) -> bool:
    """Whether the engine's state is bit for bit that of the files, as safetensors reads them."""
    whole = assembled(folder)
    for shard in zero.local_shards(engine):
        for kind, view in zip(STATE, zero.state_views(engine, shard), strict=True):
            wanted = part(whole[shard.name, kind], shard.cut)
            wanted = wanted.reshape(-1)[shard.start : shard.start + shard.length]
            if not torch.equal(view.cpu(), wanted):
                return False
    for name, parameter in zero.trained(engine):
        held = held_of(parameter)
        wanted = part(whole[name, "master"], held.cut if held else None).to(parameter.dtype)
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            if not torch.equal(parameter, wanted):
                return False
    return zero.step_count(engine) in (None, SAVED)


def assembled(folder: Path) -> dict[tuple[str, str], torch.Tensor]:
    """Put a checkpoint's tensors together from its index and files."""
    index = json.loads((folder / "index.json").read_text())
    whole = {}
    for name, entry in index["tensors"].items():
        for kind in entry["kinds"]:
            found: dict[Cut | None, list[torch.Tensor]] = {}
            for one in sorted(entry["slices"], key=lambda one: one["start"]):
                with safe_open(folder / one["file"], "pt") as file:
                    cut = Cut.of(one["cut"], entry["shape"])
                    found.setdefault(cut, []).append(file.get_tensor(f"{name}.{kind}"))
            made = torch.empty(entry["shape"])
            for cut, parts in found.items():
                part(made, cut, torch.cat(parts))
            whole[name, kind] = made
    return whole


def part(whole: torch.Tensor, cut: Cut | None, values: torch.Tensor | None = None) -> torch.Tensor:
    """Return a part of a tensor, after it was set to flat values where these are given."""
    cut = cut or Cut(0, ((0, whole.shape[0]),))
    places = torch.cat([torch.arange(first, last) for first, last in cut.parts])
    if values is not None:
        whole.index_copy_(cut.dimension, places, values.view(cut.shape(whole.shape)))
    return whole.index_select(cut.dimension, places)
