"""The hops of a run that need torch: join the ranks, plan, load, train, save."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from train import checkpoints
from train.console import Console
from train.data.feed import Layout, Share
from train.data.store import Dataset
from train.data.tokenizer import Tokenizer, load_tokenizer
from train.engine import start as engines
from train.engine.export import save_final
from train.engine.gang import Gang, connect
from train.engine.sample import generate
from train.engine.step import Engine
from train.hops import Source
from train.launch.request import run_dir
from train.loop import Job, Outputs, fit
from train.planned import Planned, plan
from train.planning import Cluster, compare
from train.planning.flops import sample_cost, step_flops
from train.record import StepRecord, environment, open_run_folder
from train.resume import require_shared, resume, total_steps
from train.sinks import NoSink, open_sink
from train.stopping import Stopping

__all__ = [
    "connect",
    "finish",
    "fit",
    "job",
    "open_outputs",
    "plan",
    "resume",
    "save",
    "save_folder",
    "start",
]

warnings.filterwarnings("ignore", category=FutureWarning)


def open_outputs(
    source: Source, planned: Planned, gang: Gang, env: Mapping[str, str], stop: Stopping
) -> Outputs:
    """Open the run folder on rank 0, and write there what this start is.

    Raises:
        ConfigError: the folder cannot be written, or not by all hosts, or --report-to needs a
            package.
    """
    out = source.config.output
    named = out.run_dir
    path = Path(named or gang.from_main(lambda: run_dir(source.config, time.time())))
    devices = [f"{device.node}: {device.name}" for device in gang.devices()]
    folder = gang.on_main(lambda: open_run_folder(path))
    require_shared(gang, path)
    stop.follow(path)
    sink = gang.on_main(lambda: open_sink(out.report_to, path)) or NoSink()
    console = Console(True, folder.log) if folder is not None else Console(False)
    if folder is not None:
        folder.note("config.json", asdict(source.config))
        folder.note("plan.json", planned.chosen.to_json())
        folder.note("ds_config.json", planned.zero)
        folder.note("environment.json", environment(env, devices))
        console.say(f"The run folder is {path}")
    return Outputs(console, folder, sink, path)


def start(source: Source, planned: Planned, gang: Gang, out: Outputs) -> Engine:
    """Load the model under the plan; say what was changed in it.

    Raises:
        ModelError: the folder does not hold a model that can be trained here.
    """
    engine = engines.start(
        gang, source.config, source.model, planned.chosen.plan, dict(planned.zero)
    )
    for notice in engine.model.notices:
        out.console.say(notice)
    # Collecting garbage at different moments on different ranks makes all of them wait each time.
    gc.collect()
    gc.freeze()
    return engine


def job(
    source: Source,
    data: Dataset,
    planned: Planned,
    engine: Engine,
    start: int = 0,
    owed: bool = False,
) -> Job:
    """Put together what the loop needs to go on from step `start`."""
    config = source.config
    chosen = planned.chosen.plan
    longest = int(max(data.train.lengths.max(), data.eval.lengths.max(initial=0)))
    cost = np.vectorize(partial(sample_cost, source.shape), otypes=[np.float64])
    return Job(
        config=config,
        train=data.train,
        held_out=data.eval,
        layout=Layout(
            replica=engine.gang.world.rank,
            replicas=chosen.dp,
            capacity=max(chosen.micro_tokens, longest),
            cost=cost,
            padded=not engine.model.packed,
        ),
        start=start,
        total=total_steps(source.config, data),
        plan=chosen.digest,
        world_size=engine.gang.world.size,
        mfu=partial(_mfu, source, planned.cluster),
        owed=owed,
        expected=partial(compare, planned.chosen),
    )


def save(engine: Engine, source: Source, out: Outputs) -> None:
    """Write the final Hugging Face folder with its tokeniser, from the last checkpoint."""
    folder, config = save_folder(source, out), source.config
    out.console.hop(7, f"Saving the model to {folder}")
    checkpoint = engine.gang.from_main(lambda: checkpoints.complete(out.path)[0])
    save_final(engine.gang, checkpoint, config.model, config.data.seed, folder)


def finish(
    source: Source, records: Sequence[StepRecord], data: Dataset, gang: Gang, out: Outputs
) -> None:
    """Say what came of the run; for the preset, let the saved model speak; write DONE."""
    if records:
        first, last = records[0], records[-1]
        out.console.say(
            f"Loss {'before training' if first.step == 1 else 'at first'}: {first.loss:.4f} "
            f"(step {first.step}), after: {last.loss:.4f} (step {last.step})"
        )
    if source.preset and gang.world.is_main:
        _speak(data, load_tokenizer(source.config.model), save_folder(source, out), out.console)
    out.sink.close()
    if out.folder is not None:
        out.folder.finish()
    out.console.hop(8, "Done")
    gang.barrier()
    gc.unfreeze()  # or libraries' cycles outlive the process's end, and some complain of that


def _speak(data: Dataset, tokenizer: Tokenizer, folder: Path, console: Console) -> None:
    """Print what the saved model answers to the prompt of a sample held out from training."""
    tokens, mask = data.eval.sample(0)
    prompt = tokens[: int(mask.argmax())].tolist()
    answer = generate(folder, prompt, data.tokenizer.eos)
    console.say("The saved model, asked for a function it has not seen:")
    for line in (*tokenizer.decode(prompt).splitlines(), "", ">>> generated:"):
        console.say(f"    {line}")
    for line in tokenizer.decode(answer).splitlines():
        console.say(f"    {line}")


def save_folder(source: Source, out: Outputs) -> Path:
    """Return where the final model goes."""
    return Path(source.config.output.save_dir or out.path / "model")


def _mfu(source: Source, cluster: Cluster, share: Share, seconds: float) -> float | None:
    if not cluster.gpu.listed:  # a processor, or a device whose peak is not known
        return None
    lora = source.config.model.lora
    flops = step_flops(source.shape, share.lengths.tolist(), lora.r if lora else None)
    return flops / seconds / (cluster.gpu.peak * cluster.gpus)
