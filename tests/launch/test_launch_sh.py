"""launch.sh: which Python it takes, how it makes .venv, and how fast a mistake is answered."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Stands for a Python without deepspeed: `-m venv` makes a copy of it, `-m pip` may fail.
STUB = """#!/bin/bash
case "$*" in
  *"-c "*deepspeed*) exit 1 ;;
  "-P -c "*) echo $KIND ;;
  --version) echo Python 3.12.0 ;;
  "-P -m venv --clear "*) bin="${@: -1}/bin"; rm -rf "$bin"; mkdir -p "$bin"
    cp "$0" "$bin/python"; echo venv >> $CALLS ;;
  "-P -m pip "*) echo pip >> $CALLS; echo "$*" >> $CALLS.words
    echo "  Downloading torch-9-any.whl (900.1 MB)"
    echo "  Downloading tiny-9-any.whl (9.1 kB)"; [ ! -e $BROKEN ] ;;
  *) echo "ran $*" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of launch.sh beside a pyproject.toml, and a bin/ with nothing but the stub."""
    root = tmp_path / "a checkout"
    (root / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "launch.sh", root)
    (root / "pyproject.toml").write_text("v1\n")
    for name in ("python", "python3"):  # whatever this machine has must not be found
        (root / "bin" / name).write_text(STUB)
        (root / "bin" / name).chmod(0o755)
    return root


def run(
    checkout: Path, *words: str, **more: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    env = {
        "PATH": f"{checkout}/bin:/usr/bin:/bin",
        "CALLS": str(checkout.parent / "calls"),
        "BROKEN": str(checkout.parent / "broken"),
        **more,
    }
    shown = subprocess.run(
        [checkout / "launch.sh", *words], env=env, capture_output=True, text=True, cwd="/"
    )
    calls = Path(env["CALLS"])
    return shown, calls.read_text().split() if calls.exists() else []


def test_the_environment_is_made_once_and_then_used(checkout: Path) -> None:
    shown, calls = run(checkout, "2", "--seed", "1")
    assert shown.stdout == "ran -P -m train.launch 2 --seed 1\n", shown.stderr
    assert "making .venv with Python 3.12.0" in shown.stderr
    assert "launch.sh: Downloading torch-9-any.whl (900.1 MB)\n" in shown.stderr
    assert "tiny" not in shown.stderr
    assert calls == ["venv", "pip"]
    shown, calls = run(checkout, "3")
    assert (shown.stdout, shown.stderr) == ("ran -P -m train.launch 3\n", "")
    assert calls == ["venv", "pip"]


def test_on_amds_gpus_no_torch_for_nvidia_is_installed(checkout: Path) -> None:
    shown, calls = run(checkout, "2", KIND="amd")
    assert (shown.returncode, calls) == (2, [])
    assert "set ANYRANK_TORCH_INDEX to the index of torch for your ROCm" in shown.stderr
    shown, calls = run(checkout, "2", KIND="amd", ANYRANK_TORCH_INDEX="http://rocm")
    assert shown.stdout == "ran -P -m train.launch 2\n"
    assert "installing torch from http://rocm" in shown.stderr
    assert calls == ["venv", "pip", "pip"]


@pytest.mark.parametrize(("kind", "end"), [("nvidia", "[kernels]"), ("cpu", ""), ("", "")])
def test_kernels_are_installed_where_a_gpu_is(checkout: Path, kind: str, end: str) -> None:
    shown, _ = run(checkout, "2", KIND=kind)
    assert shown.stdout == "ran -P -m train.launch 2\n", shown.stderr
    told = (checkout.parent / "calls.words").read_text().splitlines()[-1]
    assert told.endswith(f"--editable {checkout}{end}")
    assert run(checkout, "2")[0].stderr == ""


def test_a_half_made_environment_is_made_anew(checkout: Path) -> None:
    (checkout.parent / "broken").touch()
    shown, calls = run(checkout, "2")
    assert shown.returncode != 0 and shown.stdout == ""
    (checkout.parent / "broken").unlink()
    shown, calls = run(checkout, "2")
    assert shown.stdout == "ran -P -m train.launch 2\n"
    assert calls == ["venv", "pip", "venv", "pip"]


def test_new_dependencies_are_installed_into_the_same_environment(checkout: Path) -> None:
    run(checkout, "2")
    (checkout / "pyproject.toml").write_text("v2\n")
    _, calls = run(checkout, "2")
    assert calls == ["venv", "pip", "pip"]


def test_two_at_the_same_time_make_it_once(checkout: Path) -> None:
    run(checkout, "2")
    shutil.rmtree(checkout / ".venv")
    (checkout.parent / "calls").unlink()
    env = {
        "PATH": f"{checkout}/bin:/usr/bin:/bin",
        "CALLS": str(checkout.parent / "calls"),
        "BROKEN": str(checkout.parent / "broken"),
    }
    both = [subprocess.Popen([checkout / "launch.sh"], env=env) for _ in range(2)]
    assert [one.wait(30) for one in both] == [0, 0]
    assert (checkout.parent / "calls").read_text().split() == ["venv", "pip"]


def children() -> float:
    """The CPU seconds of all processes that have been waited for."""
    spent = os.times()
    return spent.children_user + spent.children_system


def launch(*words: str, **env: str) -> tuple[int, str, float]:
    began = children()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shown = subprocess.run(
        [str(ROOT / "launch.sh"), *words],
        env={**os.environ, "PATH": path, **env},
        capture_output=True,
        text=True,
    )
    return shown.returncode, shown.stderr, children() - began


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["0"], "at least 1, but is 0"),
        (["two"], "but is 'two' instead"),
        (["2", "--sede", "1"], "did you mean '--seed'?"),
        (["2", "--batch-size", "0"], "--batch-size must be"),
        (["2", "--hostfile", "hostfiles/9node"], "does not exist; there are"),
        (["33", "--hostfile", "hostfiles/8node"], "has 32 (8 hosts)"),
        (["2", "--ds-config", "absent.json"], "there is no ds_config 'absent.json'"),
        (
            ["2", "--model-name-or-path", "./m", "--dataset-name-or-path", "d"],
            "'./m' does not exist",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(words: list[str], told: str) -> None:
    code, err, _ = launch(*words)
    assert code == 2 and told in err
    assert err.startswith("[error] ") and err.count("\n") == 1 and "Traceback" not in err


def test_a_mistake_is_answered_in_under_a_second_of_the_processor() -> None:
    assert launch("2", "--sede", "1")[2] < 1.0


def test_the_current_flavor_is_used_where_no_hostfile_is_named(tmp_path: Path) -> None:
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    words = [sys.executable, "-m", "train.cli", "switch", "8node"]
    subprocess.run(words, env={**os.environ, **env}, cwd=ROOT, check=True, capture_output=True)
    assert "hostfiles/8node has 32" in launch("40", **env)[1]


def test_it_works_through_a_link_and_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "go").symlink_to(ROOT / "launch.sh")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    shown = subprocess.run(
        ["./go", "--help"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert shown.returncode == 0 and "GPUs of the whole job" in shown.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "go"]
