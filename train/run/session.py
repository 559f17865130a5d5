"""What training is made of: the run's outputs, its engine, and the job that the loop is given."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from train.data.feed import Placement, StepBatch
from train.data.mix import Dataset
from train.engine import start as engines
from train.engine.gang import Gang
from train.engine.step import Engine
from train.launch import heartbeat
from train.launch.arguments import run_dir
from train.launch.owner import own
from train.launch.stopping import StopRequests
from train.loop import Outputs, TrainingJob
from train.output.console import Console
from train.output.metrics import PHASES
from train.output.record import RestartRecord, divide_pause, environment, open_run_folder
from train.output.trackers import NoTracker, open_tracker
from train.planning import Cluster, compare
from train.planning.predict import sample_cost, step_flops
from train.run.balancing import loads, rebalanced
from train.run.inputs import RunInputs
from train.run.planning import PlannedRun
from train.run.resume import Resumed, require_shared, total_steps


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


def _mfu(inputs: RunInputs, cluster: Cluster, batch: StepBatch, seconds: float) -> float | None:
    if not cluster.gpu.known:  # a processor, or a device whose peak is not known
        return None
    lora = inputs.config.model.lora
    flops = step_flops(inputs.shape, batch.lengths.tolist(), lora.r if lora else None)
    return flops / seconds / (cluster.gpu.peak * cluster.power)
