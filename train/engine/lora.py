"""A low-rank adapter through peft, with a dropout that is a hash of what it drops.

An element is kept or dropped by (seed, step, sample, position, module, feature) alone, so neither
the packing, nor the ranks, nor recomputation can change which.
"""

from __future__ import annotations

import logging

import torch
from transformers import PreTrainedModel

from train.config import LoraConfig
from train.errors import ModelError


class DropoutContext:
    """Names of the tokens of the current micro-batch, which every dropout of the model reads.

    `samples` and `positions` are int64, one per token, in the order of the hidden states. A model's
    forward hands nothing of the kind through to its modules, so they are set before it.
    """

    def __init__(self) -> None:
        self.step, self.samples, self.positions = 0, torch.empty(0), torch.empty(0)

    def set_tokens(self, step: int, samples: torch.Tensor, positions: torch.Tensor) -> None:
        """Set what the next forward's tokens are called."""
        self.step, self.samples, self.positions = step, samples, positions


class HashDropout(torch.nn.Module):
    """Dropout with probability `p` whose mask is a pure function of the tokens' names."""

    def __init__(self, p: float, seed: int, module: int, context: DropoutContext) -> None:
        super().__init__()
        self.p, self.seed, self.module, self.context = p, seed, module, context
        self.first = 0  # the number of the first feature that it is given

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Drop features of (1, T, features) or (rows, length, features); the shape is kept."""
        if not self.training:
            return hidden
        key = torch.zeros_like(self.context.samples, dtype=torch.int32)
        for part in (self.seed, self.context.step, self.module):
            key = _mix(key + part)
        for parts in (self.context.samples, self.context.positions):
            key = _mix(key + parts.to(torch.int32))
        last = self.first + hidden.shape[-1]
        features = torch.arange(self.first, last, dtype=torch.int32, device=hidden.device)
        chance = _mix(key[:, None] + _mix(features + 1)[None, :])
        kept = chance >= int(self.p * 2**32) - 2**31
        return hidden * kept.view(hidden.shape) / (1 - self.p)


def attach(
    model: PreTrainedModel,
    config: LoraConfig,
    seed: int,
    context: DropoutContext,
    whole: PreTrainedModel | None = None,
) -> torch.nn.Module:
    """Freeze the model and put adapters beside its linear layers, in the model's own type.

    The first values follow from the seed alone, so every rank and every world size starts alike.

    Args:
        whole: the model that `model` is a stage of, without weights; its adapters are drawn.
    """
    if whole is not None:
        return _attach_part(model, attach(whole, config, seed, context), config, seed, context)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it, which then warns
    from peft import LoraConfig as PeftConfig  # a quarter of a second that other runs are spared
    from peft import get_peft_model
    from peft.tuners.lora import LoraLayer

    torch.manual_seed(seed)
    adapter = PeftConfig(
        task_type="CAUSAL_LM",
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="all-linear",
    )
    try:
        module = get_peft_model(model, adapter, autocast_adapter_dtype=False)
    except ValueError as error:
        raise ModelError(f"--use-lora does not fit this model: {error}") from None
    if config.dropout > 0:
        layers = [layer for layer in module.modules() if isinstance(layer, LoraLayer)]
        for number, layer in enumerate(layers):
            for key in layer.lora_dropout:
                layer.lora_dropout[key] = HashDropout(config.dropout, seed, number, context)
    return module


def _attach_part(
    model: PreTrainedModel,
    whole: torch.nn.Module,
    config: LoraConfig,
    seed: int,
    context: DropoutContext,
) -> torch.nn.Module:
    """Attach adapters to a stage with the values, and the dropouts, that the whole model's have."""
    module = attach(model, config, seed, context)
    drawn, there = dict(whole.named_parameters()), dict(whole.named_modules())
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(drawn[name])
    for name, part in module.named_modules():
        if isinstance(part, HashDropout):
            part.module = there[name].module
    return module


def weightless(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Give a model on `meta` weights of no memory on the CPU, in place: adapters fit beside."""
    for part in model.modules():
        for name, parameter in part.named_parameters(recurse=False):
            nothing = torch.zeros((), dtype=dtype).expand(parameter.shape)
            setattr(part, name, torch.nn.Parameter(nothing, requires_grad=False))
    return model


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Scatter the bits of int32 values (lowbias32, nullprogram.com/blog/2018/07/31)."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * (0x846CA68B - 2**32)
    return x ^ ((x >> 16) & 0xFFFF)
