"""The wheel works in an empty folder: nothing of the checkout is needed."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CLEAN = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(words, cwd, **env) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=CLEAN | env, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A new environment with the wheel; its dependencies are those of this one."""
    folder = tmp_path_factory.mktemp("install")
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(".*", "runs", "build"))
    words = ["-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, folder / "source"]
    run([sys.executable, *words], folder)
    shutil.rmtree(folder / "source")
    run([sys.executable, "-m", "venv", "v"], folder)
    (wheel,) = folder.glob("anyrank-*.whl")
    run(["v/bin/pip", "install", "-q", "--no-deps", wheel], folder)
    site = next((folder / "v/lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_an_installed_anyrank_trains_in_an_empty_folder(installed, tmp_path):
    done = run([installed / "v/bin/anyrank", "launch", "2", "--max-steps", "3", "--run-dir", "r"],
               tmp_path, HF_HUB_OFFLINE="1")  # fmt: skip
    assert "3 steps, lr 0.002 (cosine), fp32, ds_config auto.json" in done.stdout
    assert "[Step 3/3]" in done.stdout
    assert (tmp_path / "r/DONE").exists() and (tmp_path / "r/model/config.json").exists()


def test_an_installed_anyrank_has_hostfiles_and_ds_configs(installed, tmp_path):
    code = "import train, train.paths as p; print(train.__file__, p.shipped('ds_configs'))"
    shown = run([installed / "v/bin/python", "-c", code], tmp_path).stdout
    assert str(installed) in shown.split()[0] and str(installed) in shown.split()[1]
    choice = {"XDG_CONFIG_HOME": str(tmp_path)}
    shown = run([installed / "v/bin/anyrank", "switch", "8node"], tmp_path, **choice).stdout
    assert "The current flavor is 8node: 32 x A100-SXM-80GB, 2560 GB." in shown
    words = ["plan", "--num-gpus", "8", "--gpu", "H100-SXM"]
    assert (
        "Configuration for parallelism"
        in run([installed / "v/bin/anyrank", *words], tmp_path).stdout
    )


def test_the_version_is_told_once_in_the_package_and_once_in_the_metadata():
    import train

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == train.__version__
    assert project["requires-python"] == ">=3.11,<3.14"
