"""Whether the installed torch can use a machine's GPUs: real texts of torch/version.py."""

import pytest

from train.hosts import torch_build
from train.hosts.torch_build import TorchBuild, mismatch, read

CUDA13 = TorchBuild("2.13.0+cu130", "13.0", "")
CUDA12 = TorchBuild("2.13.0+cu128", "12.8", "")
ROCM = TorchBuild("2.13.0+rocm7.1", "", "7.1.52802")
CPU = TorchBuild("2.13.0+cpu")
H100 = ("NVIDIA H100 80GB HBM3",) * 2


@pytest.mark.parametrize(
    ("text", "build"),
    [
        (
            "from typing import Optional\n__all__ = ['__version__', 'cuda', 'hip']\n"
            "__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\n"
            "hip: Optional[str] = None\n",
            CUDA13,
        ),
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip = None\n", CPU),
        ("__version__ = '2.13.0+rocm7.1'\ncuda = None\nhip: str = '7.1.52802'\n", ROCM),
    ],
)
def test_what_torch_was_built_for_is_read_from_its_version_file(text, build):
    assert read(text) == build


@pytest.mark.torch
def test_the_installed_torch_is_read_as_it_says_itself():
    import torch

    found = torch_build.installed()
    assert (found.version, found.cuda or None) == (torch.__version__, torch.version.cuda)


@pytest.mark.parametrize(
    ("kind", "names", "driver", "build"),
    [
        ("nvidia", H100, "580.65.06", CUDA13),
        ("nvidia", H100, "535.183.01", CUDA12),
        ("nvidia", H100, "", CUDA13),
        ("nvidia", ("Tesla V100-SXM2-16GB",), "550.54", CUDA12),
        ("nvidia", ("a card of tomorrow",), "590.1", CUDA13),
        ("amd", ("AMD Instinct MI300X",), "", ROCM),
        ("nvidia", H100, "570.1", None),
    ],
)
def test_a_torch_that_fits_is_passed(kind, names, driver, build):
    assert mismatch(kind, names, driver, build) == ""


@pytest.mark.parametrize(
    ("kind", "names", "driver", "build", "parts"),
    [
        ("nvidia", H100, "570.124.06", CUDA13,
         ("2 NVIDIA GPUs with driver 570.124.06", "built for CUDA 13.0, needs driver 580",
          "a torch for CUDA 12")),
        ("nvidia", H100, "470.256.02", CUDA12, ("needs driver 525", "a torch for CUDA 11")),
        ("nvidia", H100, "580.1", CPU, ("built without GPUs, cannot use", "a torch for CUDA by")),
        ("nvidia", H100, "580.1", ROCM, ("built for ROCm 7.1.52802, cannot use",)),
        ("nvidia", ("Tesla V100-SXM2-16GB",), "580.1", CUDA13,
         ("no kernels for the Tesla V100-SXM2-16GB (sm_70), only from sm_75 on", "CUDA 12")),
        ("amd", ("AMD Instinct MI300X",) * 8, "", CUDA13,
         ("this machine has 8 AMD GPUs", "built for CUDA 13.0, cannot use", "a torch for ROCm",
          "HIP_VISIBLE_DEVICES= for CPU ranks")),
    ],
)  # fmt: skip
def test_a_torch_that_does_not_fit_is_one_sentence_with_versions_and_what_to_install(
    kind, names, driver, build, parts
):
    said = mismatch(kind, names, driver, build)
    assert all(part in said for part in parts), said
    assert "\n" not in said
