"""Load a Hugging Face causal language model for packed training, checked against its files."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from train.config import ModelConfig
from train.engine import attention, divide, hollow, kernels, lora, quantize, weights
from train.engine.attention_probe import kernel_works
from train.engine.blank import DTYPES, blank_model, on_meta, trains_a_part
from train.engine.loss import Loss, summed_cross_entropy
from train.engine.mesh import ALONE, Mesh
from train.engine.packing import can_pack
from train.engine.stages import WHOLE, Stage, StagedModel, class_of, cut, mark_copies, tied
from train.errors import ModelError


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for `deepspeed.initialize`, and what the user should be told about it.

    `supports_logits_to_keep`: its forward can be asked for the logits of some tokens only.
    `head`: returns the loss instead of the logits, in Liger's kernel; `loss`: what is made of the
    logits otherwise. `module` holds what belongs to `stage`, and runs through `runs`; `shared` are
    parameters of it that the first and the last stage have both; `hidden` is the width and type of
    what stages send.
    """

    module: torch.nn.Module
    packed: bool
    supports_logits_to_keep: bool
    dropout: lora.DropoutContext
    notices: tuple[str, ...]
    head: kernels.FusedHead | None = None
    stage: Stage = WHOLE
    shared: tuple[torch.nn.Parameter, ...] = ()
    hidden: tuple[int, torch.dtype] = (0, torch.float32)
    loss: Loss = summed_cross_entropy

    @property
    def runs(self) -> torch.nn.Module:
        """What DeepSpeed wraps."""
        return self.module if self.stage == WHOLE else StagedModel(self.module, self.stage)


def load(
    folder: Path,
    config: ModelConfig,
    zero_config: dict[str, Any],
    device: torch.device,
    seed: int,
    *,
    packed: bool = True,
    fused: bool = True,
    longest: int = 0,
    mesh: Mesh = ALONE,
) -> LoadedModel:
    """Load the folder's model, or what of it belongs to this rank's stage and tensor rank.

    Under ZeRO-3 only the first of the ranks that divide a parameter reads it.

    Args:
        folder: a Hugging Face folder with safetensors weights.
        zero_config: the final DeepSpeed configuration; stage 3 partitions while loading.
        seed: of the adapter's initial values.
        packed: pack where the model's attention allows it; otherwise pad.
        fused: use Liger's kernels where they are installed and right.
        longest: tokens that a sample may have, for rotations that depend on it.
        mesh: where this rank stands; only the weights of its stage, and of its part, are read.

    Raises:
        ModelError: the folder does not hold this model, whole, or it cannot be trained here.
    """
    blank, unused = _checked(folder, config)
    shape, notices = _prepare(blank.config, folder)
    notices += _parts_told(folder, blank, unused)
    if packed and not can_pack(shape):
        packed = False
        notices += (f"{shape.model_type} attention cannot be packed, so samples are padded",)
    implementation, said = _attention(shape, config, device) if packed else (None, ())
    notices += (*_settle_rotation(shape, folder, longest), *said)
    stage = Stage(mesh.pipe, mesh.pp)
    divided: tuple[divide.Divided, ...] = ()
    if mesh.tp > 1:
        model = on_meta(shape, config, implementation)
        cut(model, stage)
        divided = hollow.load_parts(model, folder, zero_config, device, mesh)
    else:
        model = _whole(folder, blank, stage, shape, config, zero_config, implementation, device)
    mark_copies(model, stage)
    notices += _undropped(model)
    keeps, head = packed and _supports_logits_to_keep(model), None
    if fused:
        alone = keeps and not divided
        head, said = kernels.fuse(model, device, supports_logits_to_keep=alone)
        notices += said
    module: torch.nn.Module = model
    dropout, dtype = lora.DropoutContext(), DTYPES[config.precision]
    if config.lora is not None:
        whole = None if stage == WHOLE else lora.weightless(blank, dtype)
        module = lora.attach(model, config.lora, seed, dropout, whole)
    shared = tuple(tied(model)) if stage.is_first != stage.is_last else ()
    hidden = int(getattr(shape, "hidden_size", 0)), dtype
    loss = divide.finish_parts(module, model, divided, mesh)
    return LoadedModel(module, packed, keeps, dropout, notices, head, stage, shared, hidden, loss)


def _parts_told(folder: Path, model: PreTrainedModel, unused: list[str]) -> tuple[str, ...]:
    """Say what a folder holds that is not trained."""
    if trains_a_part(folder, model):
        return (f"only the text part of {folder} is trained, and saved as a model of its own",)
    more = f" and {len(unused) - 4} more" if unused[4:] else ""
    said = (
        f"weights in {folder} that the model does not use are not trained, and not saved: "
        f"{', '.join(unused[:4])}{more}"
    )
    return (said,) if unused else ()


def _checked(folder: Path, config: ModelConfig) -> tuple[PreTrainedModel, list[str]]:
    """Return the folder's model without weights, compared with the headers of its files, and what
    they hold besides.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    blank = blank_model(folder, config)
    unused = weights.check_shapes(folder, blank)
    _check_ties(folder, blank)
    return blank, unused


def _whole(
    folder: Path,
    blank: PreTrainedModel,
    stage: Stage,
    shape: PreTrainedConfig,
    config: ModelConfig,
    zero_config: dict[str, Any],
    implementation: str | None,
    device: torch.device,
) -> PreTrainedModel:
    """Return a model, or a stage of it, as transformers loads it, compared with its files."""
    kind: Any = AutoModelForCausalLM if stage == WHOLE else class_of(type(blank), stage)
    model = _from_pretrained(folder, kind, shape, config, zero_config, implementation, device)
    if stage != WHOLE:
        model.__class__ = type(blank)  # its family's own again
    quantize.keep_exact(model)
    weights.check_loaded(folder, model)
    return model


def _attention(
    shape: PreTrainedConfig, config: ModelConfig, device: torch.device
) -> tuple[str | None, tuple[str, ...]]:
    """Return the name of the packed attention, and what is to be told of its kernel."""
    kernel = True
    said: tuple[str, ...] = ()
    if device.type == "cuda" and config.precision == "bf16":
        width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
        kernel, said = kernel_works(device, width)
    return attention.register(kernel=kernel), said


def _supports_logits_to_keep(model: PreTrainedModel) -> bool:
    return "logits_to_keep" in inspect.signature(type(model).forward).parameters


def _prepare(shape: PreTrainedConfig, folder: Path) -> tuple[PreTrainedConfig, tuple[str, ...]]:
    """Switch off what would make the loss depend on the packing: dropout and auxiliary losses."""
    if getattr(shape, "output_router_logits", False):
        raise ModelError(
            f"{folder}/config.json asks for an auxiliary router loss, which depends on how samples "
            "are grouped: set output_router_logits to false"
        )
    dropped = [
        name
        for name, value in vars(shape).items()
        if "drop" in name and type(value) in (int, float) and value > 0  # of layers and paths, too
    ]
    for name in dropped:
        setattr(shape, name, 0.0)
    shape.use_cache = False
    notices = tuple(f"{name} in the model's config was set to 0" for name in dropped)
    return shape, notices


def _undropped(model: torch.nn.Module) -> tuple[str, ...]:
    """Switch off the dropout that a model's code has of its own, whatever its config says."""
    left = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    left = [module for module in left if module.p > 0]
    for module in left:
        module.p = 0.0
    said = f"dropout that the model's code has of its own was set to 0 (modules: {len(left)})"
    return (said,) if left else ()


def _settle_rotation(shape: PreTrainedConfig, folder: Path, longest: int) -> tuple[str, ...]:
    """See to it that a sample's rotation does not depend on what it is packed or padded with.

    transformers chooses the frequencies of `longrope` by the longest sample of a forward, and those
    of `dynamic` by the longest so far (modeling_rope_utils.py, dynamic_rope_update).
    """
    found = getattr(shape, "rope_parameters", None) or {}
    for rope in [found] if "rope_type" in found else found.values():
        kind = rope.get("rope_type")
        own = getattr(shape, "max_position_embeddings", longest)
        first = rope.get("original_max_position_embeddings") or own
        if kind not in ("longrope", "dynamic") or longest <= first:
            continue
        if kind == "dynamic":
            raise ModelError(
                f"{folder}/config.json scales rotations by the longest sample so far, so that "
                f"beyond {first} tokens losses depend on the packing: use --block-size {first}"
            )
        rope["short_factor"] = rope["long_factor"]
        return (f"--block-size is beyond {first}: the model's long rotations are used throughout",)
    return ()


def _from_pretrained(
    folder: Path,
    kind: Any,
    shape: PreTrainedConfig,
    config: ModelConfig,
    zero_config: dict[str, Any],
    implementation: str | None,
    device: torch.device,
) -> PreTrainedModel:
    sharded = zero_config["zero_optimization"]["stage"] == 3
    assert not (sharded and config.quantize), "ZeRO-3 would divide what is packed in 4 bits"
    dtype = DTYPES[config.precision]
    placed: dict[str, Any] = {} if sharded or device.type == "cpu" else {"device_map": {"": device}}
    if config.quantize:
        placed = quantize.options(dtype, device)
    # transformers holds this object by a weak reference: it must live until the model is loaded.
    zero3 = HfDeepSpeedConfig(zero_config) if sharded else None
    try:
        model = kind.from_pretrained(
            folder,
            config=shape,
            dtype=dtype,
            attn_implementation=implementation,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=config.trust_remote_code,
            **placed,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        # Memory that runs out and lost peers are RuntimeErrors, too, but nothing a user mistook.
        if isinstance(error, RuntimeError) and not re.search("mismatch|state_dict", str(error)):
            raise
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"the model in {folder} cannot be loaded: {first}") from None
    del zero3
    assert isinstance(model, PreTrainedModel)
    return model


def _check_ties(folder: Path, model: PreTrainedModel) -> None:
    head = model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    if head is not None:
        pair = [f"{names[id(module)]}.weight" for module in (model.get_input_embeddings(), head)]
        tied = bool(getattr(model.config, "tie_word_embeddings", False))
        weights.check_tie(folder, tied=tied, names=(pair[0], pair[1]))
