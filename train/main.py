"""One run, as a table of contents: each line of `run` is a stage from argv to a trained model."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]  # not train/

from train.config import RunConfig, World, parse_args
from train.launch.stopping import StopRequests
from train.loop import fit
from train.run import inputs
from train.run.exit import exit_with, install_handlers


def run(config: RunConfig, world: World, env: MutableMapping[str, str], stop: StopRequests) -> None:
    """Carry out a run."""
    console, cache = inputs.begin(world, env)
    console.stage(1, f"Connecting to resources on the server ({inputs.host_name()})")
    found = inputs.locate(config, cache, console)
    console.stage(2, f"Opening the dataset {found.config.data.name_or_path}")
    found, data = inputs.open_data(found, cache, console)
    console.say("Importing torch and DeepSpeed, which takes some seconds")
    with inputs.uncollected():  # these import torch, and nothing above does
        from train.run import finishing, joining, planning, preference, resume, session
    console.stage(3, f"Joining the ranks, {world.size} in all")
    gang = joining.join(found, data, world, env)
    console.stage(4, "Planning")
    planned = planning.choose_plan(found, data, gang, console, cache, env)
    if config.dry_run:
        return
    out = session.open_outputs(found, planned, gang, env, stop)
    out.console.stage(5, f"Loading the model {found.config.model.name_or_path}")
    engine = session.start_engine(found, planned, gang, out)
    data = preference.refer(engine, found, data, planned, cache, out.console)
    resumed = resume.resume(found, data, planned.plan, engine, out)
    job = session.training_job(found, data, planned, engine, resumed)
    out.console.stage(6, f"Training {job.total} steps")
    fit(engine, job, out, resumed.saver, stop)
    step = finishing.save(engine, found, data, out)
    finishing.finish(engine, found, data, out, step)
    gang.close()


def main() -> None:
    """Run from the command line and leave with the run's exit code."""
    world = World()
    try:
        world, stop = install_handlers(os.environ)
        sys.argv[1:] = inputs.words(sys.argv[1:], world)  # as environment.json will tell them
        run(parse_args(sys.argv[1:]), world, os.environ, stop)
    except BaseException as error:
        exit_with(error, world)


if __name__ == "__main__":
    main()
