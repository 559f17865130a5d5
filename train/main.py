"""One run, as a table of contents: each line of `run` is a hop from argv to a trained model."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

# The launcher runs this file, so that its folder leads the path: the repository takes its place.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from train import hops
from train.config import RunConfig, World, parse_args
from train.console import Console
from train.ends import begin, end
from train.stopping import Stopping


def run(config: RunConfig, world: World, env: MutableMapping[str, str], stop: Stopping) -> None:
    """Carry out a run."""
    console = Console(world.is_main)
    cache = hops.cache_folder(env)
    console.hop(1, f"Connecting to resources on the server ({hops.host_name()})")
    source = hops.locate(config, cache, console)
    console.hop(2, f"Opening the dataset {source.config.data.name_or_path}")
    data = hops.open_data(source, cache, console)

    from train import training  # torch and deepspeed: not needed for anything that can fail above

    console.hop(3, f"Joining the ranks, {world.size} in all")
    gang = training.connect(world, env)
    console.hop(4, "Planning")
    planned = training.plan(source, data, gang, console, cache)
    if config.dry_run:
        return
    out = training.open_outputs(source, planned, gang, env, stop)
    out.console.hop(5, f"Loading the model {source.config.model.name_or_path}")
    engine = training.start(source, planned, gang, out)
    resumed = training.resume(source, data, planned.plan, engine, out)
    job = training.job(source, data, planned, engine, resumed.start, resumed.owed)
    out.console.hop(6, f"Training {job.total} steps")
    records = training.fit(engine, job, out, resumed.saver, stop)
    training.save(engine, source, out)
    training.finish(source, records, data, gang, out)
    gang.close()


def main() -> None:
    """Run from the command line and leave with the run's exit code."""
    world = World()
    try:
        world, stop = begin(os.environ)
        run(parse_args(sys.argv[1:]), world, os.environ, stop)
    except BaseException as error:
        end(error, world)


if __name__ == "__main__":
    main()
