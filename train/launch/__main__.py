"""`python -m train.launch`: what was typed, checked, and run under supervision."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from train.command_line import build_parser
from train.errors import AnyrankError, ConfigError
from train.hosts import devices, flavor, hostfile, process, slurm, streams, tasks, versions
from train.launch import arguments, progress
from train.launch import command as commands
from train.launch.job import LaunchJob, by_srun
from train.launch.supervise import supervise
from train.paths import ROOT
from train.planning.dsconfig import read_ds_config
from train.planning.pins import merge_pins, unit_of
from train.text import shown

_NEEDED = ("deepspeed", "torch", "transformers", "datasets", "sentencepiece", "peft")


def command(argv: Sequence[str]) -> int:
    """Launch what was typed after `./launch.sh` or `anyrank launch`; return the exit code.

    Raises:
        UserError: anything typed is wrong; nothing has been started then.
    """
    streams.make_lasting()
    with process.caught() as signals:
        return launch(argv, os.environ, time.time(), signals)


def main() -> None:
    """Run from the command line; a user's mistake is one sentence and exit code 2."""
    streams.prepare()
    try:
        code = command(sys.argv[1:])
    except AnyrankError as error:
        print(shown(f"[error] {error}", sys.stderr), file=sys.stderr)
        code = error.exit_code
    sys.exit(code)


def launch(argv: Sequence[str], env: Mapping[str, str], now: float, signals: list[int]) -> int:
    """Check what was typed, run the job, and return its exit code.

    Raises:
        UserError: anything typed is wrong; nothing has been started then.
    """
    if "--help" in argv or "-h" in argv:
        print(arguments.USAGE + build_parser().format_help())
        return 0
    tasks.refuse_copies(env)
    asked = arguments.parse(argv)
    words, said = arguments.of_run(asked.args)
    asked = replace(asked, args=words)
    node_list = slurm.hosts(env) if asked.hostfile is None else None
    hosts = node_list or _hosts(asked, flavor.choice_file(env))
    if asked.gpus is not None and hosts is not None:
        hostfile.fill(hosts, asked.least or asked.gpus)
    config, args = arguments.check(asked, now)
    _require_packages()
    if said:
        print(f"[launch] {said}", file=sys.stderr)
    ranks = asked.gpus
    if hosts is None:
        here = devices.find(env)
        cores = os.cpu_count() or 1
        ranks = commands.choose(asked.least or asked.gpus, here, cores)
        room = max(ranks, commands.room(here))  # for another size
        if asked.least is not None and asked.gpus is not None:
            ranks = min(asked.gpus, max(ranks, here.count if here.kind != "cpu" else cores))
        hosts = hostfile.Hostfile((hostfile.Host("localhost", room),), path="this machine")
    run_dir = Path.cwd() / (config.output.run_dir or "")
    job = LaunchJob(
        hosts,
        min(ranks or hosts.slots, hosts.slots),
        args,
        run_dir,
        config.dry_run,
        env,
        Path.cwd(),
        least=asked.least,
        free_only=asked.least is not None,
        regrow=not config.no_regrow,
        saves=config.output.save_step > 0,
        before=progress.newest_start(run_dir, env) if config.output.resume == "never" else None,
        unit=unit_of(merge_pins(config, read_ds_config(Path(config.ds_config), config))),
    )
    if job.before is not None and not job.starts_over and not job.dry_run:
        said = "this job started its run over before it was queued again, and goes on with it now"
        print(f"[launch] --resume never: {said}", file=sys.stderr)
    return supervise(by_srun(job) if node_list else job, signals)


def _hosts(asked: arguments.LaunchRequest, memory: Path) -> hostfile.Hostfile | None:
    path = asked.hostfile or flavor.current(memory)
    return None if path is None else hostfile.read(path)


def _require_packages() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{sys.executable} lacks {', '.join(missing)}: run '{sys.executable} -m pip install -e "
            f"{ROOT}', or leave this environment and let ./launch.sh make its own"
        )
    old, new = versions.outside(_NEEDED, versions.requirements())
    if old:
        raise ConfigError(
            f"{sys.executable} has {'; '.join(old)}, which is too old: run "
            f"'{sys.executable} -m pip install -e {ROOT}', or leave this environment and let "
            "./launch.sh make its own"
        )
    if new:
        print(f"[launch] newer than anyrank was tested with: {'; '.join(new)}", file=sys.stderr)


if __name__ == "__main__":
    main()
