"""The stages of a run that need torch, but for planning and resuming: load, train, save."""

from __future__ import annotations

import gc
import shutil
import socket
import time
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.checkpoint import folder as checkpoints
from train.checkpoint.identity import meaning
from train.checkpoint.index import read_index
from train.config import OutputConfig, World
from train.data.feed import Placement, Split, StepBatch
from train.data.mix import Dataset
from train.data.model_folder import read_model_config
from train.data.preview import preview
from train.data.stops import ends
from train.data.tokenizers import load_tokenizer
from train.engine import start as engines
from train.engine.checkpoint import load
from train.engine.export import save_final
from train.engine.gang import Gang, connect
from train.engine.sample import answer
from train.engine.step import Engine
from train.engine.weights import weights_fingerprint
from train.errors import DataError, FaultError
from train.hosts.probe import PACKAGES, code_digest, version
from train.launch import heartbeat
from train.launch.arguments import run_dir
from train.launch.owner import own
from train.launch.stopping import StopRequests
from train.loop import Outputs, TrainingJob, best_step, counted
from train.output.card import beside, next_commands
from train.output.console import Console
from train.output.metrics import PHASES, of_rows, read_metrics
from train.output.record import (
    RestartRecord,
    divide_pause,
    environment,
    evaluations,
    open_run_folder,
)
from train.output.trackers import NoTracker, open_tracker
from train.paths import PACKAGE
from train.planning import Cluster, compare
from train.planning.predict import sample_cost, step_flops
from train.run.balancing import loads, rebalanced
from train.run.inputs import RunInputs
from train.run.planning import PlannedRun
from train.run.resume import Resumed, require_shared, total_steps

SAMPLES, LINES = 32, 8  # held-out samples that are looked at, and lines of an answer


def join(inputs: RunInputs, data: Dataset, world: World, env: MutableMapping[str, str]) -> Gang:
    """Join the ranks, and see to it that all hosts have opened the same.

    Raises:
        DataError: a host's data, tokenizer, model, ds_config, code or packages differ.
    """
    gang = connect(world, env)
    own = _opened_by_rank(inputs, data)
    if world.local_rank == 0:
        own |= _opened_by_host(inputs)
    require_same(gang.gather((socket.gethostname(), own)))
    return gang


def require_same(found: Sequence[tuple[str, Mapping[str, object]]]) -> None:
    """Refuse hosts that differ; `found` has each rank's host, and what it knows to be opened there.

    Raises:
        DataError: it names the two hosts, or two ranks of one, and what differs.
    """
    first_host, first = found[0]
    for rank, (host, opened) in enumerate(found):
        differ = [noun for noun in opened if opened[noun] != first[noun]]
        if differ:
            who = f"rank {rank} on {host}" if host == first_host else host
            raise DataError(
                f"{who} has another {' and another '.join(differ)} than {first_host}: make them "
                "the same on every host, or put them in a folder that all hosts share"
            )


def _opened_by_rank(inputs: RunInputs, data: Dataset) -> dict[str, object]:
    """Return what this rank has opened, by what it is called: known without another look."""
    return {
        "dataset": (data.train.fingerprint, data.validation.fingerprint),
        "tokenizer": data.tokenizer.fingerprint,
        "ds_config": (inputs.pins.words(), repr(inputs.ds.extra)),
    }


def _opened_by_host(inputs: RunInputs) -> dict[str, object]:
    """Return what all ranks of a host have opened, by what it is called."""
    return {
        "model": (meaning(read_model_config(inputs.model)), weights_fingerprint(inputs.model)),
        "code of anyrank": code_digest(PACKAGE),
        "set of packages": {name: version(name) for name in PACKAGES},
    }


def open_outputs(
    inputs: RunInputs, planned: PlannedRun, gang: Gang, env: Mapping[str, str], stop: StopRequests
) -> Outputs:
    """Open the run folder on rank 0, and write there what this start is.

    Raises:
        ConfigError: the folder cannot be written, or not by all hosts, or another process runs it,
            or --report-to needs a package.
    """
    out = inputs.config.output
    named = out.run_dir
    path = Path(named or gang.from_main(lambda: run_dir(inputs.config, time.time())))
    devices = [f"{device.node}: {device.name}" for device in gang.devices()]
    supervised = heartbeat.supervised(env)
    if not supervised:  # or the supervisor owns it
        gang.on_main(lambda: own(path, Console(True).say))
    folder = gang.on_main(lambda: open_run_folder(path))
    require_shared(gang, path)
    stop.follow(path, supervised=supervised)
    console = Console(True, folder.log) if folder is not None else Console(False)
    anew = folder.attempt.name if folder is not None and out.resume == "never" else ""
    opened = gang.on_main(
        lambda: open_tracker(out.report_to, path, env, console.say, asdict(inputs.config), anew)
    )
    if folder is not None:
        folder.note("config.json", asdict(inputs.config))
        folder.note("plan.json", planned.chosen.to_json())
        folder.note("ds_config.json", planned.zero)
        told = environment(env, devices) | {"parameters": inputs.shape.parameters}
        folder.note("environment.json", told)
        console.say(f"The run folder is {path}")
    return Outputs(console, folder, opened or NoTracker(), path)


def start_engine(inputs: RunInputs, planned: PlannedRun, gang: Gang, out: Outputs) -> Engine:
    """Load the model under the plan; say what was changed in it.

    Raises:
        ModelError: the folder does not hold a model that can be trained here.
        ConfigError: the device lacks the precision, or the optimizer cannot be offloaded.
    """
    if planned.chosen.plan.offload != "none":
        out.console.say(
            "Loading DeepSpeed's CPU Adam; where it is not compiled yet that takes a minute or more"
        )
    engine = engines.start(
        gang, inputs.config, inputs.model, planned.chosen.plan, dict(planned.zero)
    )
    for notice in engine.model.notices:
        out.console.say(notice)
    # Collecting garbage at different moments on different ranks makes all of them wait each time.
    gc.collect()
    gc.freeze()
    return engine


def placement(inputs: RunInputs, data: Dataset, planned: PlannedRun, engine: Engine) -> Placement:
    """Return where this rank stands in a step, and what its replica takes."""
    chosen = planned.chosen.plan
    replica, ranks = engine.mesh.replica(chosen)
    capacity = max(chosen.micro_tokens, int(data.train.lengths.max()))
    return Placement(
        replica=replica,
        replicas=chosen.dp,
        capacity=capacity,
        cost=np.vectorize(partial(sample_cost, inputs.shape), otypes=[np.float64]),
        padded=not engine.model.packed,
        rank=ranks.index(engine.gang.world.rank),
        ranks=len(ranks),
        loads=loads(chosen, capacity, planned.shares),
    )


def training_job(
    inputs: RunInputs, data: Dataset, planned: PlannedRun, engine: Engine, resumed: Resumed
) -> TrainingJob:
    """Put together what the loop needs to go on from where the run is."""
    config = inputs.config
    chosen = planned.chosen.plan
    marks = engine.gang.marks
    named = [marks.get(name) for name in ("saved", "ended", "began", "imported")]
    instants = (*named, planned.made)
    return TrainingJob(
        config=config,
        train=data.train,
        validation=data.validation,
        placement=placement(inputs, data, planned, engine),
        start=resumed.start,
        total=total_steps(inputs.config, data),
        plan_digest=chosen.digest,
        world_size=engine.gang.world.size,
        mfu=partial(_mfu, inputs, planned.cluster),
        pending_eval=resumed.pending_eval,
        evals=resumed.evals,
        expected=lambda seconds, peak: compare(
            planned.chosen, seconds, peak, engine.reserved_bytes()
        ),
        balanced=partial(rebalanced, chosen) if chosen.balances else None,
        restarted=partial(_restarted, (*instants, time.time()), resumed.last)
        if resumed.last is not None
        else None,
    )


def _restarted(
    instants: Sequence[float | None],
    line: Mapping[str, Any],
    job: TrainingJob,
    start: int,
    first: float,
) -> RestartRecord:
    """Return what the pause before step `job.start` + 1, which was made at `first`, was made of.

    Args:
        line: of the last step before.
    """
    last = min(first, float(line["time"]))  # a clock may have been put back
    phases = dict(zip(PHASES, divide_pause((last, *instants, first)), strict=True))
    return RestartRecord(
        restart=start,
        step=job.start,
        lost=max(0, line["step"] - job.start),
        total=job.total,
        world_size=job.world_size,
        pause=first - last,
        **phases,
        time=first,
    )


def save(engine: Engine, inputs: RunInputs, data: Dataset, out: Outputs) -> int:
    """Write the final Hugging Face folder with its tokenizer; return after which step it is."""
    folder, config = save_folder(inputs, out), inputs.config
    out.console.stage(7, f"Saving the model to {folder}")
    rows = data.validation.fingerprint
    checkpoint = engine.gang.from_main(lambda: _final_checkpoint(config.output, rows, out))
    step = checkpoints.step_of(checkpoint)
    files = {} if out.folder is None else beside(out.path, out.folder.attempt, step)
    told = save_final(engine.gang, checkpoint, config.model, config.data.seed, folder, files)
    if told:
        out.console.say(told)
    if config.output.early_stop and checkpoint.parent.parent == out.path:
        index = engine.gang.from_main(lambda: read_index(checkpoint))
        load(engine, checkpoint, index)  # for what the model is asked at the end
    if out.folder is not None and config.output.save_only_model:
        shutil.rmtree(checkpoints.model_only(out.path), ignore_errors=True)
        kept = [path.name for path in checkpoints.complete(out.path)]
        out.console.say(
            "--save-only-model: the run cannot go on from its end; its checkpoints are "
            f"{', '.join(kept) or 'none'}"
        )
    return step


def _final_checkpoint(output: OutputConfig, rows: str, out: Outputs) -> Path:
    """Return what the final model is written from: the last step's, or the best evaluation's.

    Args:
        rows: the fingerprint of what is evaluated on.
    """
    found = checkpoints.complete(checkpoints.model_only(out.path)) or checkpoints.complete(out.path)
    if not output.early_stop:
        return found[0]
    kept = {checkpoints.step_of(path): path for path in found}
    evals = counted(tuple(evaluations(read_metrics(out.path / "metrics.jsonl"), rows)), kept)
    step = best_step(evals)
    if step is None:
        raise FaultError(
            f"no evaluation of {out.path} has a checkpoint, so none is the best: write one of "
            f"those of the steps {', '.join(map(str, kept))} by anyrank export"
        )
    loss = min(one.eval_loss for one in evals)
    out.console.say(
        f"--early-stop: the model is that after step {step}, whose evaluation was the best of "
        f"{len(evals)} (loss {loss:.6f})"
    )
    return kept[step]


def finish(engine: Engine, inputs: RunInputs, data: Dataset, out: Outputs, step: int) -> None:
    """Say what came of the run, let the model answer, name what to do with it; write DONE.

    Args:
        step: after which step the model is that was saved.
    """
    for line in engine.gang.from_main(lambda: _losses(out.path, data.validation.fingerprint, step)):
        out.console.say(line)
    _show_answer(engine, inputs, data, out.console)
    if out.folder is not None:
        folder = save_folder(inputs, out)
        kept = bool(checkpoints.complete(out.path))
        model, made = inputs.config.model, data.chat_template is not None
        for line in next_commands(out.path, folder, model, kept=kept, made=made):
            out.console.say(line, whole=True)  # to be copied
    out.tracker.close()
    if out.folder is not None:
        out.folder.finish()
    out.console.stage(8, "Done")
    engine.gang.barrier()
    gc.unfreeze()  # or libraries' cycles outlive the process's end, and some complain of that


def _losses(run: Path, rows: str, step: int) -> tuple[str, ...]:
    """Compare the loss on held-out `rows` before training with that of the saved model."""
    evals = of_rows(read_metrics(run / "metrics.jsonl").evals, rows)
    if not evals:
        return ()
    first, last = evals[0], next((one for one in evals if one["step"] == step), evals[-1])
    before = f"{first['eval_loss']:.4f} before training" if first["step"] == 0 else ""
    later = f"{last['eval_loss']:.4f} after step {last['step']}"
    return (f"Loss on held-out samples: {', '.join(filter(None, (before, later)))}",)


def _show_answer(engine: Engine, inputs: RunInputs, data: Dataset, console: Console) -> None:
    """Print what the model makes of a sample that is held out, and what stands there."""
    tokenizer = engine.gang.on_main(lambda: load_tokenizer(inputs.config.model))
    prompt, rest = _prompt(data.validation)
    stops = engine.gang.from_main(lambda: ends(tokenizer) if tokenizer else [])
    found = answer(engine, prompt, stops)
    if tokenizer is None:
        return
    console.say("A held-out sample, and what the model answers to it:")
    generated = (tokenizer.show(found), True)
    for line in preview([(tokenizer.show(prompt.tolist()), False)], colour=console.colour):
        console.say(f"    {line}")
    console.say("    >>> generated:")
    for line in preview([generated], colour=console.colour)[:LINES]:
        console.say(f"    {line}")
    console.say("    >>> in the data:")
    for line in preview([(tokenizer.show(rest.tolist()), False)], colour=console.colour)[:LINES]:
        console.say(f"    {line}")


def _prompt(split: Split) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return a held-out sample up to its first answer, and the rest: the shortest of the first.

    Of a text that carries loss throughout a third is given.
    """
    found = []
    for number in range(min(SAMPLES, len(split.lengths))):
        tokens, mask = split.sample(number)
        start = int(mask.argmax())
        found.append((start if start > 1 else max(1, len(tokens) // 3), number))
    start, number = min(found)
    tokens, _ = split.sample(number)
    return tokens[:start], tokens[start:]


def save_folder(inputs: RunInputs, out: Outputs) -> Path:
    """Return where the final model goes."""
    return Path(inputs.config.output.save_dir or out.path / "model")


def _mfu(inputs: RunInputs, cluster: Cluster, batch: StepBatch, seconds: float) -> float | None:
    if not cluster.gpu.known:  # a processor, or a device whose peak is not known
        return None
    lora = inputs.config.model.lora
    flops = step_flops(inputs.shape, batch.lengths.tolist(), lora.r if lora else None)
    return flops / seconds / (cluster.gpu.peak * cluster.power)
