"""`anyrank check`: examine every host before a run; a line for each failure says what mends it."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from train.config import RunConfig, parse_args
from train.errors import ModelError, PlanError
from train.launch import everywhere, flavor, hostfile, network, preflight, request
from train.launch.everywhere import Answer
from train.launch.hostfile import Host, Hostfile
from train.launch.need import Need, need_of
from train.launch.plan import calibrations
from train.launch.request import ROOT
from train.launch.sharing import shared_token

USAGE = """\
anyrank check [N] [--hostfile F] [the run's own arguments]

Write what ./launch.sh would be given: then disk and memory are compared with the run's plan, and
the run folder is the one that all hosts must share (default: runs)."""
PROBE = "train.launch.probe"
_PATIENCE = 30.0  # seconds for a host to answer


def command(argv: Sequence[str]) -> int:
    """Examine the hosts; return 0 if all is well, else 1.

    Raises:
        UserError: an argument of the run is wrong, or the hostfile cannot be read.
    """
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    asked = request.parse(argv)
    path = asked.hostfile or flavor.current(flavor.memory_file(os.environ, ROOT))
    hosts = hostfile.read(path) if path else Hostfile((Host("localhost", asked.gpus or 1),))
    if asked.gpus is not None:
        hosts = hostfile.fill(hosts, asked.gpus)
    config, _ = request.check(asked, time.time())
    folder = Path(parse_args(asked.args).output.run_dir or "runs")
    failures = examine(hosts, folder, config)
    print("\n".join(f"[fail] {failure}" for failure in failures) or "All is well.")
    return 1 if failures else 0


def examine(hosts: Hostfile, folder: Path, config: RunConfig) -> list[str]:
    """Ask all hosts at the same time, print a line for each, and return every failure."""
    with shared_token(folder) as token:
        words = ("look", str(folder.resolve()), token.name)
        answers = everywhere.ask(hosts.hosts, PROBE, words, Path.cwd(), _PATIENCE)
    failures: list[str] = []
    try:
        need = need_of(config, answers, calibrations())
    except (ModelError, PlanError) as error:
        need, failures = Need(0.0, 0.0), [str(error)]
    for answer in answers:
        found = preflight.failures(answer, need)
        noun = "failure" if len(found) == 1 else "failures"
        print(f"{answer.host.name:<20} {f'{len(found)} {noun}' if found else 'ok'}")
        failures += found
    if need.words:
        print(need.words)
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
        late = threading.Timer(_PATIENCE, server.kill)
        late.start()
        said = (line for line in server.stdout if line.startswith(b"{"))  # not what a shell greets
        port = json.loads(next(said, b"{}")).get("port", 0)
        late.cancel()
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
