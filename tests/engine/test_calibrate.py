"""`anyrank plan --calibrate`: the part that needs ranks, and a cache that takes nothing."""

import pytest

from train.commands.plan import command
from train.engine.calibrate import collective_rate
from train.errors import ConfigError


def test_two_ranks_measure_a_collective():
    assert collective_rate(2, cuda=False) > 1e6


def test_nothing_is_measured_that_cannot_be_kept(tmp_path, monkeypatch):
    (tmp_path / "anyrank").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="the cache folder .* cannot be used"):
        command(["--calibrate"])
