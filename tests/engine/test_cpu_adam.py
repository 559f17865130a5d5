"""What DeepSpeed's CPU Adam is compiled with."""

import os
import shutil

from deepspeed.ops.op_builder import CPUAdamBuilder

from train.engine.start import _build_cpu_adam


def test_ninja_is_that_of_this_python_also_where_its_environment_is_not_activated(
    monkeypatch, tmp_path
):
    found = []
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "built"))
    monkeypatch.setattr(
        CPUAdamBuilder, "load", lambda *_, **__: found.append(shutil.which("ninja"))
    )
    _build_cpu_adam()
    assert found[0] is not None
    assert os.environ["PATH"] == str(tmp_path)
