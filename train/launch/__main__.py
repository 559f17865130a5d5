"""`python -m train.launch`: from what was typed to the `deepspeed` command, checked and run."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from train.config import RunConfig, build_parser
from train.errors import AnyrankError, ConfigError
from train.launch import command, devices, flavor, hostfile, network, process, request

_NEEDED = ("deepspeed", "torch", "transformers", "datasets", "sentencepiece", "peft")


def main() -> None:
    """Run from the command line; a user's mistake is one sentence and exit code 2."""
    try:
        code = launch(sys.argv[1:], os.environ, time.time())
    except AnyrankError as error:
        print(f"[error] {error}", file=sys.stderr)
        code = error.exit_code
    sys.exit(code)


def launch(argv: Sequence[str], env: Mapping[str, str], now: float) -> int:
    """Check what was typed, start the ranks, and return the run's exit code.

    Raises:
        UserError: anything typed is wrong; nothing has been started then.
    """
    if "--help" in argv or "-h" in argv:
        print(request.USAGE + build_parser().format_help())
        return 0
    asked = request.parse(argv)
    hosts = _hosts(asked, flavor.memory_file(env, request.ROOT))
    config, args = request.check(asked, now)
    _require_packages()
    if hosts is None or (len(hosts.hosts) == 1 and network.is_here(hosts.hosts[0].name)):
        ranks = asked.gpus if hosts is None else hosts.slots
        return _run_here(ranks, config, args, env)
    return _run_there(hosts, config, args, env)


def _hosts(asked: request.Request, memory: Path) -> hostfile.Hostfile | None:
    path = asked.hostfile or flavor.current(memory)
    if path is None:
        return None
    hosts = hostfile.read(path)
    return hosts if asked.gpus is None else hostfile.fill(hosts, asked.gpus)


def _require_packages() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{sys.executable} lacks {', '.join(missing)}: run '{sys.executable} -m pip install -e "
            f"{request.ROOT}', or leave this environment and let ./launch.sh make its own"
        )


def _run_here(
    asked: int | None, config: RunConfig, args: tuple[str, ...], env: Mapping[str, str]
) -> int:
    found = devices.find(env)
    ranks = command.choose(asked, found, os.cpu_count() or 1)
    kind = "CPU ranks (no GPU was found)" if found.kind == "cpu" else "GPUs"
    _say(f"{ranks} {kind} on this machine")
    script = request.ROOT / "train" / "main.py"
    argv = command.local(_deepspeed(), ranks, found, network.free_port(), script, args)
    return _finish(config, _start(argv, command.environment(env, found)))


def _run_there(
    hosts: hostfile.Hostfile, config: RunConfig, args: tuple[str, ...], env: Mapping[str, str]
) -> int:
    _say(f"{hosts.slots} GPUs on {len(hosts.hosts)} hosts of {hosts.path}")
    script = request.ROOT / "train" / "main.py"
    master = (network.master_address(hosts.hosts), network.free_port())
    with closing(tempfile.NamedTemporaryFile("w", prefix="anyrank-hostfile-")) as copy:
        copy.write(hostfile.render(hosts))
        copy.flush()
        argv = command.over_ssh(_deepspeed(), Path(copy.name), master, script, args)
        return _finish(config, _start(argv, env))


def _deepspeed() -> tuple[str, ...]:
    script = Path(sys.executable).with_name("deepspeed")
    return (
        (str(script),) if script.exists() else (sys.executable, "-m", "deepspeed.launcher.runner")
    )


def _start(argv: Sequence[str], env: Mapping[str, str]) -> int:
    _say(shlex.join(argv))
    return process.run(argv, env)


def _finish(config: RunConfig, code: int) -> int:
    """Believe a success only where the run says so: a killed launcher would return 0, too."""
    done = Path(config.output.run_dir or "") / "DONE"
    if code == 0 and not config.dry_run and not done.exists():
        print(f"[error] the ranks ended without finishing: {done} is missing", file=sys.stderr)
        return 1
    return code


def _say(text: str) -> None:
    print(f"[launch] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
