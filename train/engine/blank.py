"""A folder's model without its weights: what it is, and what can be done with it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from train.config import ModelConfig
from train.data.model_folder import read_model_config
from train.engine.packing import can_pack
from train.engine.stages import can_cut
from train.errors import ModelError
from train.planning.tensor import FAMILIES

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def divisible(folder: Path, config: ModelConfig) -> bool:
    """Whether a folder's model can be cut into pipeline stages: it must pack, too.

    Raises:
        ModelError: the folder's config.json is of no model known here.
    """
    return can_cut(_read_config(folder, config))


def shardable(folder: Path, config: ModelConfig) -> bool:
    """Whether a folder's model is of a family that tensor ranks divide.

    Raises:
        ModelError: the folder's config.json is of no model known here.
    """
    shape = blank_model(folder, config).config
    return shape.model_type in FAMILIES and bool(shape.base_model_tp_plan)


def packable(folder: Path, config: ModelConfig) -> bool:
    """Whether the attention of a folder's model can be packed.

    Raises:
        ModelError: the folder's config.json is of no model known here.
    """
    return can_pack(_read_config(folder, config))


def trains_a_part(folder: Path, model: PreTrainedModel) -> bool:
    """Whether a folder holds more than the language model that was made of it."""
    return read_model_config(folder).get("model_type") != model.config.model_type


def _read_config(folder: Path, config: ModelConfig) -> PreTrainedConfig:
    try:
        found: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=config.trust_remote_code
        )
        return found
    except Exception as error:  # whatever a value in the file makes transformers raise
        if "custom code" in str(error):
            raise ModelError(
                f"{folder} brings code of its own, which would be run: give --trust-remote-code if "
                "you trust it, or choose another model"
            ) from None
        raise ModelError(
            f"{folder}/config.json is not a model known here ({_first_line(error)}): correct it, "
            "or install a version of transformers that knows it"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def blank_model(folder: Path, config: ModelConfig) -> PreTrainedModel:
    """Return the folder's model without weights, on `meta`, whatever its config says of attention.

    Raises:
        ModelError: config.json makes no model.
    """
    shape = _read_config(folder, config)
    try:
        return on_meta(shape, config, "eager")
    except Exception as error:  # nothing is allocated here, so it is the file that is at fault
        raise ModelError(
            f"{folder}/config.json makes no causal language model ({_first_line(error)}): correct "
            "it, or choose another model"
        ) from None


def on_meta(
    shape: PreTrainedConfig, config: ModelConfig, implementation: str | None
) -> PreTrainedModel:
    """Return a model without weights, in the run's type."""
    with torch.device("meta"):
        found: PreTrainedModel = AutoModelForCausalLM.from_config(
            shape, trust_remote_code=config.trust_remote_code, attn_implementation=implementation,
            dtype=DTYPES[config.precision],
        )  # fmt: skip
    return found
