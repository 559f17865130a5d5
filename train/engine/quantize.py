"""A frozen base in 4 bits (NF4, arXiv 2305.14314), by bitsandbytes, under an adapter.

Each matrix of a layer is rounded block by block as it is read, on the device that computes with it,
so that every rank holds the same numbers; embeddings, head and norms stay as they are. A product
takes the matrix back to the run's type first. ZeRO never divides what is packed so.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from train.errors import ConfigError, ModelError

KIND = "nf4"


def options(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return what `from_pretrained` is given to load a model so.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"--quantize {KIND} needs the bitsandbytes package: pip install 'anyrank[quantize]', "
            "or leave it out"
        )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of kernels that it can do without
    from transformers import BitsAndBytesConfig

    chosen = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=KIND,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": chosen, "device_map": {"": device}}


def keep_exact(model: torch.nn.Module) -> None:
    """Have evaluation compute as training does: bitsandbytes would change to a kernel in bf16.

    It does so on processors that have it, and for most shapes only (nn/modules.py, Linear4bit).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  (no Module's own)


def true_shape(parameter: torch.nn.Parameter) -> tuple[int, ...] | None:
    """Return the shape that a packed matrix had; None for a parameter that is not packed."""
    state = getattr(parameter, "quant_state", None)
    return None if state is None else tuple(state.shape)


def check_packed(
    path: Path, key: str, name: str, parameter: torch.nn.Parameter, dtype: torch.dtype
) -> None:
    """Compare a packed matrix with the file's, rounded again: to the last bit.

    Raises:
        ModelError: it holds something else.
    """
    from bitsandbytes.functional import quantize_4bit

    with safe_open(path, "pt") as file:
        stored = torch.as_tensor(file.get_tensor(key)).to(parameter.device, dtype)
    found, _ = quantize_4bit(stored, quant_type=KIND, compress_statistics=True)
    if not torch.equal(found.reshape(-1), parameter.detach().reshape(-1)):
        raise ModelError(
            f"'{name}' was not rounded to {KIND} as it stands in {path}: nothing was trained; "
            "check the installed versions of transformers and bitsandbytes"
        )
