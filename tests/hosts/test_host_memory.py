import subprocess
import sys
from pathlib import Path

from train.hosts.memory import allocatable, memory
from train.paths import ROOT


def host(root: Path, groups: dict[str, dict[str, str]], own: str) -> Path:
    """Make what a kernel shows of 64 GB, 60 of them free, and of cgroups."""
    files = {
        "proc/meminfo": "MemTotal: 64000000 kB\nMemAvailable: 60000000 kB\n",
        "proc/self/cgroup": f"4:memory:/old\n0::{own}\n",
    }
    for group, fields in groups.items():
        files |= {f"sys/fs/cgroup{group}/memory.{name}": text for name, text in fields.items()}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_without_a_limit_the_hosts_memory_counts(tmp_path: Path) -> None:
    found = memory(host(tmp_path, {"/a": {"max": "max\n"}}, "/a"))
    assert found == {"total": 64_000_000 * 1024, "available": 60_000_000 * 1024}


def test_the_tightest_cgroup_around_the_process_limits_it(tmp_path: Path) -> None:
    groups = {
        "/job": {"max": "16000\n", "current": "15000\n", "stat": "anon 1\ninactive_file 4000\n"},
        "/job/step": {"max": "20000\n", "current": "1000\n"},
        "/other": {"max": "1\n", "current": "1\n"},
    }
    assert memory(host(tmp_path, groups, "/job/step")) == {"total": 16000, "available": 5000}


def test_a_container_sees_its_own_group_at_the_root(tmp_path: Path) -> None:
    groups = {"": {"max": "8000\n", "current": "3000\n"}}
    assert memory(host(tmp_path, groups, "/")) == {"total": 8000, "available": 5000}


def test_what_can_still_be_allocated_heeds_the_processs_own_limits() -> None:
    assert 0 < allocatable() <= memory()["available"]
    script = "import resource as r; from train.hosts.memory import allocatable; "
    script += "r.setrlimit(r.RLIMIT_DATA, (200_000_000, -1)); print(allocatable())"
    shown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert 0 < int(shown.stdout) < 200_000_000
