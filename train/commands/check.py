"""`anyrank check`: examine every host before a run; a line for each failure says what mends it."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from train.commands.requirements import Need, need_of, shortages
from train.config import RunConfig, parse_args
from train.errors import ModelError, PlanError
from train.hosts import flavor, hostfile, network, remote
from train.hosts.hostfile import Host, Hostfile
from train.hosts.probe import HostReport
from train.hosts.remote import Answer
from train.hosts.shared_folder import shared_token
from train.launch import arguments, preflight
from train.paths import cache_path, calibration_folder
from train.text import fitted, terminal_width

USAGE = """\
anyrank check [N] [--hostfile F] [the run's own arguments]

Write what ./launch.sh would be given: then disk and memory are compared with the run's plan, and
the run folder is the one that all hosts must share (default: runs)."""
PROBE = "train.hosts.probe"
_PATIENCE = 30.0  # seconds for a host to answer


def command(argv: Sequence[str]) -> int:
    """Examine the hosts; return 0 if all is well, else 1.

    Raises:
        UserError: an argument of the run is wrong, or the hostfile cannot be read.
    """
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    asked = arguments.parse(argv)
    path = asked.hostfile or flavor.current(flavor.choice_file(os.environ))
    hosts = hostfile.read(path) if path else Hostfile((Host("localhost", asked.gpus or 1),))
    if asked.gpus is not None:
        hosts = hostfile.fill(hosts, asked.gpus)
    config, _ = arguments.check(asked, time.time())
    folder = Path(parse_args(asked.args).output.run_dir or "runs")
    failures = examine(hosts, folder, config)
    width = terminal_width()
    said = (fitted(f"[fail] {failure}", width) for failure in failures)
    print("\n".join(said) or "All is well.")
    return 1 if failures else 0


def examine(hosts: Hostfile, folder: Path, config: RunConfig) -> list[str]:
    """Ask all hosts at the same time, print a line for each, and return every failure."""
    with shared_token(folder) as token:
        words = ("look", str(folder.resolve()), token.name)
        answers = remote.ask(hosts.hosts, PROBE, words, Path.cwd(), _PATIENCE)
    found = [(answer, _report(answer)) for answer in answers]
    known = [(answer.host, report) for answer, report in found if report is not None]
    failures: list[str] = []
    try:
        need = need_of(config, known, calibration_folder(cache_path(os.environ)))
    except (ModelError, PlanError) as error:
        need, failures = Need(0.0, 0.0), [str(error)]
    for answer, report in found:
        wrong = failures_of(answer, report, need)
        noun = "failure" if len(wrong) == 1 else "failures"
        print(f"{answer.host.name:<20} {f'{len(wrong)} {noun}' if wrong else 'ok'}")
        failures += wrong
    if need.words:
        print(fitted(need.words, terminal_width()))
    if known:
        failures += preflight.differences([report for _, report in known])
    return failures + reach([host for host, _ in known])


def failures_of(answer: Answer, report: HostReport | None, need: Need) -> list[str]:
    """Return what is wrong with one host, a sentence each."""
    host = answer.host
    error = preflight.error_of(host, report, answer.error)
    found = [error] if error else []
    if report is not None:
        texts = (*preflight.notices_of(host, report, answer.time), *shortages(host, report, need))
        found += [f"{host.name}: {text}" for text in texts]
    return found


def _report(answer: Answer) -> HostReport | None:
    return None if answer.content is None else HostReport.from_json(answer.content)


def reach(hosts: Sequence[Host]) -> list[str]:
    """Let the first host listen and all others connect to it; return who cannot."""
    if len(hosts) < 2:
        return []
    address = network.master_address(hosts)
    argv = remote.command(hosts[0].name, PROBE, ("listen", "20"), Path.cwd())
    env = {**os.environ, "PYTHONPATH": remote.python_path("")}
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=env
    ) as server:
        assert server.stdout is not None
        late = threading.Timer(_PATIENCE, server.kill)
        late.start()
        said = (line for line in server.stdout if line.startswith(b"{"))  # not what a shell greets
        port = json.loads(next(said, b"{}")).get("port", 0)
        late.cancel()
        tried = remote.ask(hosts[1:], PROBE, ("connect", address, str(port)), Path.cwd(), _PATIENCE)
        server.terminate()
    found = []
    for answer in tried:
        error = answer.error if answer.content is None else answer.content["error"]
        if error:
            found.append(
                f"{answer.host.name}: it cannot reach port {port} of {hosts[0].name} at {address} "
                f"({error}): open the firewall between the hosts for all ports above 1024"
            )
        elif answer.content is not None:
            print(f"{answer.host.name:<20} reaches {address} by {answer.content['interface']}")
    return found
