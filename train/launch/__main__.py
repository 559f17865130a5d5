"""`python -m train.launch`: what was typed, checked, and run under supervision."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from train.config import build_parser
from train.errors import AnyrankError, ConfigError
from train.launch import command, devices, flavor, hostfile, process, request, slurm
from train.launch.supervise import Job, supervise

_NEEDED = ("deepspeed", "torch", "transformers", "datasets", "sentencepiece", "peft")


def main() -> None:
    """Run from the command line; a user's mistake is one sentence and exit code 2."""
    try:
        with process.caught() as signals:
            code = launch(sys.argv[1:], os.environ, time.time(), signals)
    except AnyrankError as error:
        print(f"[error] {error}", file=sys.stderr)
        code = error.exit_code
    sys.exit(code)


def launch(argv: Sequence[str], env: Mapping[str, str], now: float, signals: list[int]) -> int:
    """Check what was typed, run the job, and return its exit code.

    Raises:
        UserError: anything typed is wrong; nothing has been started then.
    """
    if "--help" in argv or "-h" in argv:
        print(request.USAGE + build_parser().format_help())
        return 0
    asked = request.parse(argv)
    node_list = slurm.hosts(env) if asked.hostfile is None else None
    hosts = node_list or _hosts(asked, flavor.memory_file(env, request.ROOT))
    if asked.gpus is not None and hosts is not None:
        hostfile.fill(hosts, asked.gpus)
    config, args = request.check(asked, now)
    _require_packages()
    if hosts is None:
        ranks = command.choose(asked.gpus, devices.find(env), os.cpu_count() or 1)
        hosts = hostfile.Hostfile((hostfile.Host("localhost", ranks),))
    run_dir = Path.cwd() / (config.output.run_dir or "")
    job = Job(hosts, asked.gpus or hosts.slots, args, run_dir, config.dry_run, env, Path.cwd())
    return supervise(slurm.adapt(job) if node_list else job, signals)


def _hosts(asked: request.Request, memory: Path) -> hostfile.Hostfile | None:
    path = asked.hostfile or flavor.current(memory)
    return None if path is None else hostfile.read(path)


def _require_packages() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{sys.executable} lacks {', '.join(missing)}: run '{sys.executable} -m pip install -e "
            f"{request.ROOT}', or leave this environment and let ./launch.sh make its own"
        )


if __name__ == "__main__":
    main()
