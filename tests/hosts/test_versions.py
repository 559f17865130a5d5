"""An environment that is taken as it is may be too old, or newer than anything that was tested."""

from importlib import metadata

import pytest

from train.errors import ConfigError
from train.hosts import versions
from train.hosts.versions import outside, requirements
from train.launch import __main__ as launch


def test_a_package_below_its_bound_is_too_old_and_one_above_is_new():
    numpy = metadata.version("numpy")
    assert outside(["numpy"], ["numpy>=99,<100", "torch>=99"]) == (
        [f"numpy {numpy} instead of >=99,<100"],
        [],
    )
    assert outside(["numpy"], ["numpy>=1,<1.1"]) == ([], [f"numpy {numpy} instead of >=1,<1.1"])
    assert outside(["numpy", "none-such"], ["numpy>=1", "none-such>=1"]) == ([], [])


@pytest.mark.parametrize(
    ("version", "found"),
    [("0.19.8", None), ("0.19.8+cu130", None), ("0.19.10rc1", None), ("0.9", "old"),
     ("0.20", "new"), ("1.0.0", "new")],
)  # fmt: skip
def test_versions_are_compared_as_numbers(tmp_path, monkeypatch, version, found):
    folder = tmp_path / f"one_such-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Name: one-such\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path)
    old, new = outside(["one-such"], ["one-such>=0.19.8,<0.20; python_version > '3'"])
    assert (bool(old), bool(new)) == (found == "old", found == "new")


def test_what_is_installed_here_is_what_anyrank_needs():
    assert any(need.startswith("deepspeed>=") for need in requirements())
    assert outside(["deepspeed", "torch", "transformers"], requirements()) == ([], [])


def test_an_environment_that_is_too_old_is_refused_before_anything_is_started(monkeypatch):
    monkeypatch.setattr(versions, "requirements", lambda: ("deepspeed>=99,<100", "torch>=2"))
    with pytest.raises(
        ConfigError, match=r"has deepspeed \S+ instead of >=99,<100, .*too old: run"
    ):
        launch._require_packages()
