"""What a rank finds out about its GPU, without one: torch's answers are plain objects here."""

from types import SimpleNamespace

import pytest
import torch

from train.config import World
from train.engine.device import architecture, choose_device, has_kernels, settled


def test_an_architecture_is_called_as_compilers_do():
    nvidia = SimpleNamespace(major=9, minor=0, gcnArchName="NVIDIA H100 80GB HBM3")
    amd = SimpleNamespace(major=9, minor=4, gcnArchName="gfx942:sramecc+:xnack-")
    assert (architecture(nvidia), architecture(amd)) == ("sm_90", "gfx942")


MADE = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize(
    ("own", "made", "runs"),
    [
        ("sm_80", MADE, True),
        ("sm_89", MADE, True),  # kernels of sm_80 and sm_86
        ("sm_70", MADE, False),
        ("sm_103", MADE, True),
        ("sm_121", MADE, True),
        ("sm_90", ["sm_80"], False),
        ("sm_90", ["sm_80", "compute_80"], True),
        ("sm_90", ["sm_90a"], True),
        ("gfx942", ["gfx90a", "gfx942"], True),
        ("gfx1103", ["gfx90a", "gfx942"], False),
    ],
)
def test_a_gpu_runs_what_was_compiled_for_it_or_an_older_one_of_its_kind(own, made, runs):
    assert has_kernels(own, made) is runs


def test_memory_that_is_still_coming_back_is_waited_for():
    answers, pauses = iter([10, 40, 70, 70, 99]), []
    assert settled(lambda: next(answers), pauses.append) == 70
    assert pauses == [0.5] * 3


@pytest.mark.parametrize("name", ["", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_cudas_allocator_grows_its_segments_unless_the_user_says_how(monkeypatch, name):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    env = {"OMP_NUM_THREADS": "1"} | ({name: "max_split_size_mb:64"} if name else {})
    before = dict(env)
    assert choose_device(World(), env).type == "cpu"
    assert env == before | ({} if name else {"PYTORCH_ALLOC_CONF": "expandable_segments:True"})
