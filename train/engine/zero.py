"""What a checkpoint holds of an engine: the optimizer's state as flat slices of global tensors,
whatever the ZeRO stage, and the model's buffers.

Each rank owns pieces of the parameters: under ZeRO its part of the flat fp32 partitions, without it
an equal share of all elements, so that the writing and reading is divided alike. A piece names the
flat tensor that holds the fp32 master and Adam's moments, which are set and read in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from train.checkpoint.cut import Cut
from train.engine.divide import Holding, held_of
from train.engine.step import Engine

Named = tuple[str, torch.nn.Parameter]


@dataclass(frozen=True)
class LocalShard:
    """Elements `start` to `start + length` of a parameter, at `offset` of the flat `holder`.

    `shape` is the whole parameter's; where tensor ranks divide it, the elements are of its `cut`.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    length: int
    holder: torch.Tensor
    offset: int
    cut: Cut | None = None

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """Return this piece's view (length,) of the holder, or of a moment of the same layout."""
        return flat.detach().view(-1).narrow(0, self.offset, self.length)


def buffers_of(engine: Engine) -> dict[str, torch.Tensor]:
    """Return the buffers that belong to the model's state; none of them with an adapter."""
    module = engine.model.module
    if hasattr(module, "peft_config"):
        return {}
    stored = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers() if name in stored}


def trained(engine: Engine) -> tuple[Named, ...]:
    """Return the trainable parameters by name, a tied one once."""
    return tuple((n, p) for n, p in engine.model.module.named_parameters() if p.requires_grad)


def copies(engine: Engine) -> frozenset[str]:
    """Return which of this rank's parameters are copies that the first stage saves."""
    return frozenset(n for n, p in trained(engine) if getattr(p, "ds_pipe_replicated", False))


def trained_shapes(engine: Engine) -> dict[str, tuple[int, ...]]:
    """Return the whole shapes of all trained parameters, those of other stages too.

    Every rank of a pipeline must ask.
    """
    own = {name: shape_of(parameter) for name, parameter in trained(engine)}
    if engine.mesh.pp == 1:
        return own
    return {name: shape for found in engine.gang.gather(own) for name, shape in found.items()}


def shape_of(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """Return a parameter's whole shape, also where ZeRO-3 or tensor ranks have divided it."""
    held = held_of(parameter)
    return held.shape if held else tuple(getattr(parameter, "ds_shape", parameter.shape))


def local_shards(engine: Engine) -> tuple[LocalShard, ...]:
    """Return what this rank holds; the pieces of all data ranks cover what each of them has once.

    Tensor ranks hold equal pieces of what they do not divide.
    """
    stage = engine.deepspeed.zero_optimization_stage()
    mesh = engine.mesh
    named = trained(engine)
    if stage == 0:
        found = replicated(named, mesh.data, mesh.ranks)
    else:
        owned = _partitioned if stage == 3 else _flattened
        found = owned(named, engine.deepspeed.optimizer, mesh.data)
    held = {name: held_of(parameter) for name, parameter in named}
    return tuple(_placed(piece, held[piece.name]) for piece in found)


def _placed(piece: LocalShard, held: Holding | None) -> LocalShard:
    """Say of what part of a parameter a piece is."""
    return piece if held is None else replace(piece, shape=held.shape, cut=held.cut)


def replicated(named: Sequence[Named], rank: int, size: int) -> Iterator[LocalShard]:
    """Yield rank's share of parameters that every rank holds whole."""
    total, at = sum(p.numel() for _, p in named), 0
    low, high = total * rank // size, total * (rank + 1) // size
    for name, parameter in named:
        first, last = max(low, at), min(high, at + parameter.numel())
        if first < last:
            start = first - at
            yield LocalShard(name, tuple(parameter.shape), start, last - first, parameter, start)
        at += parameter.numel()


def _flattened(named: Sequence[Named], optimizer: Any, rank: int) -> Iterator[LocalShard]:
    """Yield what ZeRO-1 and -2 give this rank: an interval of each group's parameters in a row."""
    holders = flat_partitions(optimizer)
    for name, parameter in named:
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]  # noqa: SLF001
        if mapping is None:
            continue
        here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
        holder = holders[mapping.param_group_index]
        yield LocalShard(name, tuple(parameter.shape), there.start, here.numel, holder, here.start)


def _partitioned(named: Sequence[Named], optimizer: Any, rank: int) -> Iterator[LocalShard]:
    """Yield what ZeRO-3 gives this rank: an interval of every parameter, the last ones padded."""
    for name, parameter in named:
        group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = rank * size
        length = min(size, parameter.ds_numel - start)  # type: ignore[attr-defined]
        if length > 0:
            holder = optimizer.fp32_partitioned_groups_flat[group]
            yield LocalShard(name, shape_of(parameter), start, length, holder, offset)


def flat_partitions(optimizer: Any) -> list[torch.Tensor]:
    """Return the flat fp32 partitions of this rank, by parameter group or by sub-group."""
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    return list(optimizer.fp32_groups_flat_partition)


def state_views(
    engine: Engine, piece: LocalShard
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the views of a piece's master, first and second moment, in the order of STATE."""
    state = _adam(engine).state[piece.holder]
    return piece.of(piece.holder), piece.of(state["exp_avg"]), piece.of(state["exp_avg_sq"])


def init_state(engine: Engine, steps: int) -> None:
    """Make the moments where Adam has not yet, and set the number of steps it has taken."""
    adam = _adam(engine)
    if engine.deepspeed.zero_optimization_stage() == 0:
        holders: list[torch.Tensor] = [parameter for _, parameter in trained(engine)]
    else:
        holders = flat_partitions(engine.deepspeed.optimizer)
    for holder in holders:
        state = adam.state[holder]
        for name in ("exp_avg", "exp_avg_sq"):
            if name not in state:
                state[name] = torch.zeros_like(holder.detach())
        state["step"] = _count(adam, holder, steps)


def _count(adam: Any, holder: torch.Tensor, steps: int) -> Any:
    """Return the number of steps as this Adam keeps it: DeepSpeed's on the host as an int."""
    if not isinstance(adam, torch.optim.AdamW):
        return steps
    fused = bool(adam.defaults.get("fused"))
    return torch.tensor(float(steps), device=holder.device if fused else "cpu")


def step_count(engine: Engine) -> int | None:
    """Return the number of steps that Adam has taken; None where this rank owns nothing."""
    counts = {int(state["step"]) for state in _adam(engine).state.values() if "step" in state}
    assert len(counts) <= 1, f"parameters have been updated differently often: {counts}"
    return counts.pop() if counts else None


def refresh_low_precision(engine: Engine) -> None:
    """After the masters were set: make what the forward pass uses follow from them."""
    stage, optimizer = engine.deepspeed.zero_optimization_stage(), engine.deepspeed.optimizer
    if stage == 0:
        broadcast_shards(engine)
    elif stage == 3:
        optimizer.invalidate_secondary_tensor()  # hpZ's copy in each host, made of the old weights
        for number in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(number)  # noqa: SLF001
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    else:
        optimizer.update_lp_params()


def broadcast_shards(engine: Engine) -> None:
    """Give each rank the pieces that the others have read."""
    named, mesh = trained(engine), engine.mesh
    for owner in range(mesh.ranks):
        for piece in replicated(named, owner, mesh.ranks):
            for values in state_views(engine, piece):
                dist.broadcast(values, src=mesh.at(data=owner), group=mesh.data_group)


def _adam(engine: Engine) -> Any:
    optimizer = engine.deepspeed.optimizer
    return optimizer if engine.deepspeed.zero_optimization_stage() == 0 else optimizer.optimizer
