"""`anyrank check`: examine every host before a run; a line for each failure says what mends it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from train.errors import ConfigError
from train.launch import everywhere, flavor, hostfile, network, preflight
from train.launch.everywhere import Answer
from train.launch.hostfile import Host, Hostfile
from train.launch.request import ROOT
from train.launch.sharing import shared_token

USAGE = """\
anyrank check [N] [--hostfile F] [--run-dir D] [--disk GB] [--memory GB]
  --run-dir D    the folder of the runs, which all hosts must share (default: runs)
  --disk GB      free space that the run will need there (default: 10)
  --memory GB    memory that the run will need on each host (anyrank plan says how much)"""
PROBE = "train.launch.probe"
_PATIENCE = 30.0  # seconds for a host to answer
_GB = 1e9


def command(argv: Sequence[str]) -> int:
    """Examine the hosts; return 0 if all is well, else 1.

    Raises:
        UserError: an unknown word, or a hostfile that cannot be read.
    """
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    asked = arguments(argv)
    path = asked.get("hostfile") or flavor.current(flavor.memory_file(os.environ, ROOT))
    hosts = hostfile.read(path) if path else Hostfile((Host("localhost", 1),))
    if "gpus" in asked:
        hosts = hostfile.fill(hosts, int(asked["gpus"]))
    need = preflight.Need(float(asked.get("disk", 10)) * _GB, float(asked.get("memory", 0)) * _GB)
    failures = examine(hosts, Path(asked.get("run-dir", "runs")), need)
    print("\n".join(f"[fail] {failure}" for failure in failures) or "All is well.")
    return 1 if failures else 0


def arguments(argv: Sequence[str]) -> dict[str, str]:
    """Return the words by name.

    Raises:
        ConfigError: an unknown word, or one without its value.
    """
    words, found = list(argv), {}
    if words and words[0].isdecimal():
        found["gpus"] = words.pop(0)
    while words:
        word, value = words.pop(0), words.pop(0) if words else ""
        name = word.removeprefix("--")
        if name not in ("hostfile", "run-dir", "disk", "memory") or not value:
            raise ConfigError(f"anyrank check does not know '{word} {value}'; see --help")
        if name in ("disk", "memory") and not value.replace(".", "", 1).isdecimal():
            raise ConfigError(f"--{name} must be a number of GB, but is '{value}' instead")
        found[name] = value
    return found


def examine(hosts: Hostfile, folder: Path, need: preflight.Need) -> list[str]:
    """Ask all hosts at the same time, print a line for each, and return every failure."""
    with shared_token(folder) as token:
        words = ("look", str(folder.resolve()), token.name)
        answers = everywhere.ask(hosts.hosts, PROBE, words, Path.cwd(), _PATIENCE)
    gauges = everywhere.ask(hosts.hosts, "train.launch.gauge", (), Path.cwd(), _PATIENCE)
    failures = []
    for answer, gauge in zip(answers, gauges, strict=True):
        found = preflight.failures(answer, gauge, need)
        noun = "failure" if len(found) == 1 else "failures"
        print(f"{answer.host.name:<20} {f'{len(found)} {noun}' if found else 'ok'}")
        failures += found
    known = [answer.facts for answer in answers if answer.facts is not None]
    failures += preflight.differences(known) if known else ()
    return failures + reach(answers)


def reach(answers: Sequence[Answer]) -> list[str]:
    """Let the first host listen and all others connect to it; return who cannot."""
    hosts = [answer.host for answer in answers if answer.facts is not None]
    if len(hosts) < 2:
        return []
    address = network.master_address(hosts)
    argv = everywhere.command(hosts[0].name, PROBE, ("listen", "20"), Path.cwd())
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=env
    ) as server:
        assert server.stdout is not None
        port = json.loads(server.stdout.readline() or "{}").get("port", 0)
        tried = everywhere.ask(
            hosts[1:], PROBE, ("connect", address, str(port)), Path.cwd(), _PATIENCE
        )
        server.terminate()
    found = []
    for answer in tried:
        fault = answer.trouble if answer.facts is None else answer.facts["fault"]
        if fault:
            found.append(
                f"{answer.host.name}: it cannot reach port {port} of {hosts[0].name} at {address} "
                f"({fault}): open the firewall between the hosts for all ports above 1024"
            )
        elif answer.facts is not None:
            print(f"{answer.host.name:<20} reaches {address} by {answer.facts['interface']}")
    return found
