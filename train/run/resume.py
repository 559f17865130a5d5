"""Where a run goes on: its newest checkpoint that is whole, if that belongs to it."""

from __future__ import annotations

import shutil
import socket
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from train.checkpoint import folder as checkpoints
from train.checkpoint.identity import (
    RunFingerprint,
    adapter_of,
    changes,
    meaning,
    refuse_beyond_end,
    refuse_other_run,
)
from train.checkpoint.index import Index, read_index
from train.config import OutputConfig, RunConfig
from train.data.mix import Dataset
from train.data.model_folder import read_model_config
from train.data.order import steps_per_epoch
from train.data.preview import sample_lines
from train.engine.gang import Gang
from train.engine.restore import restore
from train.engine.saver import Saver
from train.engine.step import Engine
from train.engine.weights import weights_fingerprint
from train.engine.zero import trained_shapes
from train.errors import CheckpointError
from train.hosts.shared_folder import sees
from train.interfaces import CheckpointSaver
from train.launch.arguments import TOKENIZED
from train.loop import Outputs, best_step, counted, is_due, short_of_rate
from train.output.card import base_of
from train.output.console import Console
from train.output.metrics import Metrics, of_rows
from train.output.record import EvalRecord, RunFolder, evaluations
from train.planning.plan import Plan
from train.run.inputs import RunInputs
from train.text import format_bytes

BEFORE = 4  # samples to train on for each that is evaluated before: a twelfth of their work


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on, what saves it, and whether an evaluation there was not made yet.

    `last`: the line of the last step before this start; None: there was none.
    `evals`: the evaluations before it that count for --early-stop.
    """

    saver: CheckpointSaver
    start: int
    pending_eval: bool
    last: Mapping[str, Any] | None = None
    evals: tuple[EvalRecord, ...] = ()


def resume(inputs: RunInputs, data: Dataset, plan: Plan, engine: Engine, out: Outputs) -> Resumed:
    """Go on from the run's newest good checkpoint, as `--resume` says, or from step 0.

    Raises:
        CheckpointError: there is one, but not for this run; or there is no space for the next.
    """
    gang, output, folder = engine.gang, inputs.config.output, out.folder
    own = gang.from_main(lambda: fingerprint_of(inputs, data, plan, gang.world.size))
    saver = Saver(engine, out.path, folder.attempt if folder else None, own, output.keep)
    total, batch = total_steps(inputs.config, data), inputs.config.data.batch_size
    if told := short_of_rate(inputs.config.optimizer, total):
        out.console.say(told)
    if output.resume == "never":
        start = 0
    else:
        start = load_newest(engine, out.path, own, output.resume, total, out.console)

    def prepare_folder() -> tuple[bool, Mapping[str, Any] | None, tuple[EvalRecord, ...]]:
        if folder is None:
            return False, None, ()
        if output.resume == "never":  # before TOKENIZED, which says to a supervisor that it is done
            _start_over(folder, out.console)
        written = {"forms": data.forms, "chat_template": data.chat_template}
        folder.note(TOKENIZED, {"date": data.date, **written})
        folder.write_text("samples.txt", sample_lines(data.shown, colour=False))
        checkpoints.tidy(out.path, start)
        shutil.rmtree(checkpoints.model_only(out.path), ignore_errors=True)
        found = folder.rewind(start)
        if found.broken:
            out.console.say(f"{found.notice}; they are kept in metrics.broken")
        _require_room(saver.bytes(), range(start, total), inputs.config, out)
        due = is_due(start, total, output.eval_step)
        if start == 0:
            noun = "pairs" if inputs.config.data.objective == "dpo" else "samples"
            due = not (told := too_long_before(len(data.validation), total * batch, noun))
            if told:
                out.console.say(told)
        if told := found.lacking(start):
            out.console.say(told)
        last = found.steps[-1] if found.steps else None
        rows = data.validation.fingerprint
        missing = due and all(line["step"] != start for line in of_rows(found.evals, rows))
        return missing, last, _counting(found, rows, output, out, start)

    return Resumed(saver, start, *gang.from_main(prepare_folder))


def too_long_before(held_out: int, trained: int, noun: str = "samples") -> str:
    """Say that evaluating before training is left out: it would be long beside it; empty: not.

    Args:
        held_out: samples, or what `noun` says; trained: those of all steps together.
    """
    if held_out <= trained / BEFORE:
        return ""
    return (
        f"the loss before training is not measured: {held_out} {noun} are held out, and all steps "
        f"together have {trained}"
    )


def _counting(
    found: Metrics, rows: str, output: OutputConfig, out: Outputs, start: int
) -> tuple[EvalRecord, ...]:
    """Return the evaluations so far that --early-stop counts: the best must have a checkpoint.

    Args:
        rows: the fingerprint of what is evaluated on.
        start: the step to go on from; evaluations after it are made again.
    """
    if not output.early_stop:
        return ()
    evals = tuple(one for one in evaluations(found, rows) if one.step <= start)
    if others := len(found.evals) - len(of_rows(found.evals, rows)):
        out.console.say(f"--early-stop: {others} evaluations on other rows do not count")
    counts = counted(evals, [checkpoints.step_of(one) for one in checkpoints.complete(out.path)])
    if len(counts) < len(evals):
        out.console.say(
            f"--early-stop: the best evaluation so far, after step {best_step(evals)}, has no "
            "checkpoint, so later ones count"
        )
    return counts


def total_steps(config: RunConfig, data: Dataset) -> int:
    """Return the number of optimizer steps of the whole run."""
    epoch = steps_per_epoch(data.train.mixture.places, config.data.batch_size)
    return config.max_steps or config.epochs * epoch


def require_shared(gang: Gang, run: Path) -> None:
    """Refuse a run folder that a rank's host does not see, or may not write to.

    Raises:
        CheckpointError: it names the host.
    """
    word = gang.from_main(lambda: uuid.uuid4().hex)
    token = run / f".shared-{word}"
    gang.on_main(lambda: token.write_text(word))
    try:
        (run / f".shared-{word}-{gang.world.rank}").write_text("")
        (run / f".shared-{word}-{gang.world.rank}").unlink()
        seen = sees(token)
    except OSError:
        seen = False
    answers = gang.gather((socket.gethostname(), seen))
    gang.on_main(lambda: token.unlink())
    blind = sorted({host for host, saw in answers if not saw})
    if blind:
        raise CheckpointError(
            f"the run folder {run} of {answers[0][0]} cannot be seen or written on "
            f"{', '.join(blind)}: give a --run-dir that all hosts share"
        )


def _start_over(folder: RunFolder, console: Console) -> None:
    place = checkpoints.set_aside(folder.path, folder.attempt)
    if place is not None:
        console.say(
            f"--resume never: starting from step 0; the old checkpoints and metrics are in {place}"
        )


def fingerprint_of(inputs: RunInputs, data: Dataset, plan: Plan, world_size: int) -> RunFingerprint:
    """Return what a checkpoint of this run belongs to, and with which settings it is made."""
    config = inputs.config
    lora, sizes, optimizer = config.model.lora, config.data, config.optimizer
    must_match = {
        "model": asdict(inputs.shape),
        "config": meaning(read_model_config(inputs.model)),
        "adapter": adapter_of(config.model),
        "objective": sizes.objective,
        "base": weights_fingerprint(inputs.model) if lora or sizes.objective == "dpo" else None,
        "block_size": sizes.block_size,
        "loss_on": sizes.loss_on,
        "tokenizer": data.tokenizer.fingerprint,
        "dataset": data.train.fingerprint,
        "batch_size": sizes.batch_size,
        "seed": sizes.seed,
    }
    may_differ = {
        "ranks": world_size,
        "begun_from": base_of(asdict(config.model)),
        "evaluation_data": data.validation.fingerprint,
        "plan": plan.to_json(),
        "precision": config.model.precision,
        "lora_dropout": lora.dropout if lora else None,
        "epochs": config.epochs,
        "max_steps": config.max_steps,
        **asdict(optimizer),
    }
    return RunFingerprint(must_match, may_differ)


def _require_room(size: int, steps: range, config: RunConfig, out: Outputs) -> None:
    """Refuse to begin where the disk cannot hold what the run will write."""
    output = config.output
    often = [output.save_step] + [output.eval_step] * bool(output.early_stop)
    saves = sum(1 for step in steps if any(is_due(step + 1, steps.stop, n) for n in often))
    saves -= output.save_only_model
    have = len(checkpoints.complete(out.path))
    keep = output.keep + 1 + bool(output.early_stop)
    more = max(1, min(have + saves, keep) - have) if saves > 0 else 0
    model = size // 12 * (4 if config.model.precision == "fp32" else 2)
    model += size // 3 * output.save_only_model  # what it is written from
    place = Path(output.save_dir) if output.save_dir else out.path
    checkpoints.require_space(place, model, "the model needs")
    needed = more * size + (0 if output.save_dir else model)
    noun = "checkpoint" if more == 1 else "checkpoints"
    purpose = f"{more} more {noun} of {format_bytes(size)} and the model need"
    free = checkpoints.require_space(checkpoints.home(out.path), needed, purpose)
    out.console.say(f"{purpose} {format_bytes(needed)}; {format_bytes(free)} are free")


def load_newest(
    engine: Engine, run: Path, own: RunFingerprint, mode: str, total: int, console: Console
) -> int:
    """Load the newest checkpoint that verifies; return the step to go on from, 0 for none.

    Raises:
        CheckpointError: it belongs to another run, all are damaged, or `must` finds none.
    """
    faults = []
    for folder in engine.gang.from_main(partial(checkpoints.complete, run)):
        found = _opened(engine, folder)
        if isinstance(found, Index):
            refuse_other_run(found.run, own, folder)
            refuse_beyond_end(found.step, total, folder)
            _refuse_shapes(engine, found, folder)
            try:
                read = restore(engine, folder, found)
            except CheckpointError as error:
                found = error
            else:
                _tell(found, own, read, folder, console)
                if found.step == total:
                    console.say(f"All {total} steps are made already: there is nothing to train")
                return found.step
        faults.append(f"{folder.name} ({found})")
        console.say(f"The checkpoint {folder.name} is damaged, so it is passed over: {found}")
    if faults:
        raise CheckpointError(
            f"no checkpoint in {checkpoints.home(run)} is whole, the damage is: "
            f"{'; '.join(faults)}; repair one, or start over with --resume never"
        )
    if engine.gang.from_main((run / "DONE").exists):
        raise CheckpointError(
            f"{run} is done, and has no checkpoint to go on from (--save-only-model keeps none): "
            "give another --run-dir, or train it again with --resume never"
        )
    if mode == "must":
        raise CheckpointError(
            f"--resume must found no checkpoint in {checkpoints.home(run)}: give the --run-dir of "
            "a run that has one, or leave --resume out"
        )
    console.say(f"There is no checkpoint in {checkpoints.home(run)}: starting from step 0")
    return 0


def _opened(engine: Engine, folder: Path) -> Index | CheckpointError:
    try:
        index: Index = engine.gang.from_main(partial(read_index, folder))
        return index
    except CheckpointError as error:
        return error


def _refuse_shapes(engine: Engine, index: Index, folder: Path) -> None:
    """Refuse a checkpoint whose parameters are not this model's, though its shape is."""
    there = {name: entry.shape for name, entry in index.tensors.items() if "master" in entry.kinds}
    here = trained_shapes(engine)
    for name in sorted(there.keys() ^ here.keys()) + sorted(there):
        if there.get(name) != here.get(name):
            raise CheckpointError(
                f"{folder} has {name} of shape {there.get(name)}, but the model has "
                f"{here.get(name)}: give the same --model-name-or-path, or another --run-dir"
            )


def _tell(index: Index, own: RunFingerprint, read: int, folder: Path, console: Console) -> None:
    console.say(
        f"Resuming from {folder.name}, saved on {_ranks(index.run.may_differ)}; now "
        f"{_ranks(own.may_differ)} ({format_bytes(read)} read by all ranks together)"
    )
    for change in changes(index.run.may_differ, own.may_differ):
        console.say(f"Changed since: {change}")


def _ranks(settings: Mapping[str, Any]) -> str:
    noun = "rank" if settings["ranks"] == 1 else "ranks"
    stages = settings["plan"].get("pp", 1)
    within = f" in {stages} stages" if stages > 1 else ""
    return f"{settings['ranks']} {noun} with ZeRO {settings['plan']['zero']}{within}"
