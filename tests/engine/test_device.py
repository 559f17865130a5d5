"""What a rank finds out about its GPU, without one: torch's answers are plain objects here."""

from types import SimpleNamespace

import pytest
import torch

from train.config import World
from train.engine.device import architecture, choose_device, has_kernels, settled
from train.errors import ConfigError
from train.hosts import probe, torch_build


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


TOOL = """#!/bin/sh
if [ "$1" = -L ]; then echo 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)'
else echo 'NVIDIA H100 80GB HBM3, 0, 81559, 0, 70.0, 570.124.06'; fi
"""


@pytest.mark.parametrize(
    ("cuda", "words"),
    [
        ("13.0", "driver 570.124.06, .* needs driver 580"),
        ("12.8", "cannot start any of the 1 GPUs"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_never_taken_for_a_cpu(monkeypatch, tmp_path, cuda, words):
    (tmp_path / "nvidia-smi").write_text(TOOL)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setattr(torch_build, "installed", lambda: torch_build.TorchBuild("2.13.0", cuda))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    env = {"PATH": f"{tmp_path}:/bin", "OMP_NUM_THREADS": "1"}
    with pytest.raises(ConfigError, match=words):
        choose_device(World(), env)
    assert choose_device(World(), env | {"CUDA_VISIBLE_DEVICES": ""}).type == "cpu"
    assert ("needs driver 580" in probe.look(env, tmp_path).error) == (cuda == "13.0")


def test_ranks_on_gpus_share_the_hosts_threads(monkeypatch):
    threads = []
    card = SimpleNamespace(major=9, minor=0, name="NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(96)))
    for name, answer in {
        "is_available": True, "device_count": 8, "set_device": None,
        "get_device_properties": card, "get_arch_list": ["sm_90"],
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    world = World(rank=3, size=8, local_rank=3, local_size=8)
    assert choose_device(world, {}) == torch.device("cuda", 3)
    assert threads == [12]
