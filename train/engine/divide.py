"""A model divided among tensor ranks: which part of which parameter each rank holds.

The model's own plan (`base_model_tp_plan` of its configuration) says which products are divided by
their output (`colwise`) and which by their input (`rowwise`). Modules stay as they are, and so do
parameters' names: each holds less, and what is missing is added by hooks (`train.engine.tensor`).
Every element of a divided parameter is on one rank; another parameter is whole on all.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
from transformers import PreTrainedModel

from train.checkpoint.cut import Cut
from train.engine import tensor
from train.engine.lora import HashDropout
from train.engine.loss import Loss, summed_cross_entropy
from train.engine.mesh import Mesh

BY_OUTPUT = ("colwise", "colwise_gather_output")
BY_INPUT = ("rowwise", "rowwise_split_input")


@dataclass(frozen=True)
class Holding:
    """What a tensor rank holds of a parameter: of `shape`, the `cut`, or all if that is None.

    `partial`: all ranks hold it whole, but each forms a part of its gradient.
    """

    shape: tuple[int, ...]
    cut: Cut | None = None
    partial: bool = False


def held_of(parameter: torch.nn.Parameter) -> Holding | None:
    """Return what this rank holds of a parameter; None where no ranks divide the model."""
    found: Holding | None = getattr(parameter, "held", None)
    return found


@dataclass(frozen=True)
class Divided:
    """A product that is divided: its module's name, and the indices of this rank along a side.

    `parts` is None for the keys and values of heads that no rank count divides: all ranks hold
    these, and each uses the heads in `heads`, one for as many of its query heads each.
    """

    name: str
    by_output: bool
    parts: tuple[tuple[int, int], ...] | None
    heads: tuple[int, ...] = ()


def divided_modules(model: PreTrainedModel, mesh: Mesh) -> tuple[Divided, ...]:
    """Return the products that the model's own plan divides, in the order of the model."""
    plan = dict(model.config.base_model_tp_plan or {})
    found = []
    for name, module in model.named_modules():
        style = _style(plan, name.removeprefix(f"{model.base_model_prefix}."))
        if style in (*BY_OUTPUT, *BY_INPUT) and isinstance(module, torch.nn.Linear):
            found.append(_divided(model, name, module, mesh, by_output=style in BY_OUTPUT))
    return tuple(found)


def _style(plan: dict[str, str], name: str) -> str:
    generic = re.sub(r"\.\d+\.", ".*.", name)
    return plan.get(generic, "")


def _divided(
    model: PreTrainedModel, name: str, module: torch.nn.Linear, mesh: Mesh, *, by_output: bool
) -> Divided:
    config = model.config
    heads, keys = int(config.num_attention_heads), int(config.num_key_value_heads)
    leaf = name.rpartition(".")[2]
    if leaf in ("k_proj", "v_proj") and keys % mesh.tp:
        first, last = tensor.share(heads, mesh)
        group = heads // keys
        step = gcd(group, last - first)
        used = tuple(head // group for head in range(first, last, step))
        return Divided(name, by_output, None, used)
    width = module.out_features if by_output else module.in_features
    sections = [width]
    if leaf == "qkv_proj":
        sections = [width * count // (heads + 2 * keys) for count in (heads, keys, keys)]
    elif leaf == "gate_up_proj":
        sections = [width // 2, width // 2]
    parts, at = [], 0
    for section in sections:
        first, last = tensor.share(section, mesh)
        parts.append((at + first, at + last))
        at += section
    return Divided(name, by_output, tuple(parts))


def hold(model: PreTrainedModel, divided: Sequence[Divided], mesh: Mesh) -> dict[str, Holding]:
    """Return what this rank holds of every parameter of a whole model, by its name."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = {name: Holding(shape) for name, shape in shapes.items()}
    for name, parameter in model.named_parameters():
        style = _style(model.config.base_model_tp_plan or {}, _module(model, name))
        if style == "replicated_with_grad_allreduce":
            found[name] = Holding(tuple(parameter.shape), partial=True)
    for one in divided:
        weight = f"{one.name}.weight"
        if one.parts is None:
            found[weight] = Holding(shapes[weight], partial=True)
        else:
            found[weight] = Holding(shapes[weight], Cut(0 if one.by_output else 1, one.parts))
        if (bias := f"{one.name}.bias") in shapes:
            cut = Cut(0, one.parts) if one.parts and one.by_output else None
            found[bias] = Holding(shapes[bias], cut, partial=cut is None)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        for name, parameter in model.named_parameters():
            if parameter is getattr(module, "weight", None):
                rows = tensor.share(parameter.shape[0], mesh)
                found[name] = Holding(shapes[name], Cut(0, (rows,)))
    return found


def _module(model: PreTrainedModel, parameter: str) -> str:
    return parameter.rpartition(".")[0].removeprefix(f"{model.base_model_prefix}.")


def connect_parts(model: PreTrainedModel, divided: Sequence[Divided], mesh: Mesh) -> None:
    """Have a model whose parameters are this rank's parts add up gradients, and find all tokens."""
    group, entered = mesh.tensor_group, set()
    for one in divided:
        above, _, leaf = one.name.rpartition(".")
        linear: Any = model.get_submodule(one.name)
        if one.by_output and above not in entered:
            entered.add(above)
            tensor.spread_input(model.get_submodule(above), group)
        if not one.by_output and linear.bias is not None:
            tensor.add_once(linear, mesh.tensor)
        if leaf == "qkv_proj":
            _tell_heads(model.get_submodule(above), mesh)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if isinstance(embedding, torch.nn.Embedding):  # or it is on another stage, and so is the head
        tensor.look_up(embedding, *tensor.share(model.config.vocab_size, mesh), group)
    if isinstance(head, torch.nn.Linear):
        tensor.spread_input(head, group)


def _tell_heads(attention: Any, mesh: Mesh) -> None:
    """Have an attention whose keys lie behind its queries in one product find them."""
    attention.config = copy.copy(attention.config)
    attention.config.num_attention_heads //= mesh.tp
    attention.num_key_value_heads //= mesh.tp


def finish_parts(
    module: torch.nn.Module, model: PreTrainedModel, divided: Sequence[Divided], mesh: Mesh
) -> Loss:
    """Sum what products that are divided by their input make, and cut adapters beside products.

    Args:
        module: the model, or what holds it with its adapters.

    Returns:
        The loss of this rank's logits.
    """
    if mesh.tp == 1:
        return summed_cross_entropy
    for one in divided:
        outer: Any = model.get_submodule(one.name)
        if hasattr(outer, "lora_A"):
            _cut_adapter(outer, one)
        if not one.by_output:
            tensor.sum_output(outer, mesh.tensor_group)
        elif one.parts is None:
            _pick_heads(outer, one.heads, int(model.config.num_key_value_heads))
    for parameter in module.parameters():
        held = held_of(parameter)
        assert held is not None, "a parameter beside a product that no plan divides"
        # DeepSpeed counts a parameter so marked on every rank in the norm, others on the first.
        parameter.model_parallel = held.cut is not None  # type: ignore[attr-defined]
        if held.partial and parameter.requires_grad:
            tensor.sum_gradient(parameter, mesh.tensor_group)
    return tensor.divided_loss(mesh, model.config.vocab_size)


def _pick_heads(linear: torch.nn.Module, heads: tuple[int, ...], count: int) -> None:
    """Have keys, or values, be those of some heads of `count`, which may come twice."""

    def pick(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        by_head = output.unflatten(-1, (count, -1))
        return torch.cat([by_head[..., head, :] for head in heads], dim=-1)

    linear.register_forward_hook(pick)


def _cut_adapter(layer: Any, one: Divided) -> None:
    """Keep of an adapter what goes with its product's part; the other half is whole."""
    for down, up in zip(layer.lora_A.values(), layer.lora_B.values(), strict=True):
        inner, outer = down.weight, up.weight
        inner.held = Holding(tuple(inner.shape), partial=True)
        outer.held = Holding(tuple(outer.shape), partial=True)
        if one.parts is None:
            continue
        halved, cut = (outer, Cut(0, one.parts)) if one.by_output else (inner, Cut(1, one.parts))
        halved.held = Holding(tuple(halved.shape), cut)
        pieces = [halved.data.narrow(cut.dimension, a, b - a) for a, b in one.parts]
        halved.data = torch.cat(pieces, dim=cut.dimension)
    for dropout in layer.lora_dropout.values():
        if isinstance(dropout, HashDropout) and not one.by_output and one.parts:
            dropout.first = one.parts[0][0]
