"""Hosts and a Slurm on this machine, brought up once for all cluster tests and taken down again."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
HOSTS = 8  # those of hostfiles/8node


@dataclass(frozen=True)
class Lab:
    """The hosts node1 … node8, and how to reach and to harm them."""

    folder: Path
    env: dict[str, str]

    def act(self, *words: str) -> None:
        """Run hosts.sh."""
        subprocess.run([FOLDER / "hosts.sh", *words], env=self.env, check=True, timeout=120)

    def start(self, argv: Sequence[str | Path], **env: str) -> subprocess.Popen[str]:
        """Start a command beside the hosts; its output is collected."""
        return subprocess.Popen(
            [str(word) for word in argv],
            cwd=ROOT,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )

    def pids(self, host: str) -> set[str]:
        """Return the processes of one host."""
        shown = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True)
        return set(shown.stdout.split())


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Bring the hosts up; skipped only where namespaces cannot be made."""
    require("ip", "sshd", "ssh", "ssh-keygen")
    probe = subprocess.run(["ip", "netns", "add", "anyrank-probe"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"network namespaces cannot be made here: {probe.stderr.strip()}")
    subprocess.run(["ip", "netns", "del", "anyrank-probe"], check=True)
    folder = tmp_path_factory.mktemp("lab")
    lock = (Path(tempfile.gettempdir()) / "anyrank-lab.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)  # the hosts' names are the machine's: one lab at a time
    found = Lab(
        folder, {**os.environ, "LAB": str(folder), "PATH": f"{folder}/bin:{os.environ['PATH']}"}
    )
    etc_hosts = Path("/etc/hosts").read_bytes()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing stays then, either
    try:
        found.act("up", str(HOSTS))
        yield found
    finally:
        found.act("down")
        signal.signal(signal.SIGTERM, before)
    assert Path("/etc/hosts").read_bytes() == etc_hosts
    shown = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True)
    assert "node" not in shown.stdout
    lock.close()
    assert left_of(folder) == []


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Bring a Slurm of two nodes up and return the environment that uses it."""
    require("slurmctld", "slurmd", "munged", "sbatch")
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    conf = folder / "slurm" / "slurm.conf"
    env = {**os.environ, "LAB": str(folder), "SLURM_CONF": str(conf)}
    try:
        subprocess.run([FOLDER / "slurm.sh", "up", "2"], env=env, check=True, timeout=120)
        yield env
    finally:
        subprocess.run([FOLDER / "slurm.sh", "down"], env=env, check=True, timeout=120)
    assert left_of(folder) == []


def require(*programs: str) -> None:
    """Skip where root or a program is missing; .ci/run installs them."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces and daemons need root")
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in programs if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (see tests/cluster/packages)")


def finish(process: subprocess.Popen[str], patience: float = 300) -> str:
    """Return what a command printed, once it has ended well."""
    try:
        out, _ = process.communicate(timeout=patience)
    finally:
        process.kill()
    assert process.returncode == 0, out[-6000:]
    return out


def left_of(
    folder: Path, patience: float = 12.0, among: Collection[str] | None = None
) -> list[str]:
    """Return every process, or of some, whose command line names a folder, after a time to end."""
    deadline = time.monotonic() + patience
    while True:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace")
            except OSError:
                continue
            counted = (
                path.parent.name != str(os.getpid())
                if among is None
                else (path.parent.name in among)
            )
            if str(folder) in words and counted:
                found.append(words.replace("\0", " "))
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


@pytest.fixture
def program() -> list[str]:
    """The supervisor over ranks that count steps: quick, and everything else is real."""
    return [sys.executable, str(ROOT / "tests" / "launch" / "supervised.py")]
