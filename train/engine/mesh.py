"""Where a rank stands among pipeline stages, data and tensor ranks, and whom it talks to there.

    rank = (pipe * ranks + data) * tp + tensor

Tensor ranks are neighbours, so that they are inside a host; stages are far apart, because they send
least. The ranks that share rows (`sp`) are neighbours along `data`. Without pipeline and tensor
degrees there is no group but that of all ranks, and DeepSpeed is told of none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from train.engine.gang import Gang
from train.planning.plan import Plan


@dataclass(frozen=True)
class Mesh:
    """One rank's place; `ranks` are those among which ZeRO divides, and `data` counts them.

    The groups are torch's: `data_group` of the ranks that hold the same parameters, `pipe_group` of
    the stages and `tensor_group` of the tensor ranks at this rank's other two coordinates, and
    `model_group` of the pp x tp ranks that make one whole model. None stands for all ranks of the
    job (`data_group`), or for no others (the rest).
    """

    rank: int
    ranks: int
    tp: int = 1
    pp: int = 1
    data_group: Any = None
    pipe_group: Any = None
    tensor_group: Any = None
    model_group: Any = None

    @property
    def pipe(self) -> int:
        """The number of this rank's stage."""
        return self.rank // (self.ranks * self.tp)

    @property
    def data(self) -> int:
        """Which of the ranks with the same parameters this is."""
        return self.rank // self.tp % self.ranks

    @property
    def tensor(self) -> int:
        """Which part of every divided matrix this rank holds."""
        return self.rank % self.tp

    @property
    def is_last(self) -> bool:
        """Whether this rank's stage has the head."""
        return self.pipe == self.pp - 1

    @property
    def speaks(self) -> bool:
        """Whether a sum over all ranks takes this rank's losses: one of each model's ranks."""
        return self.is_last and self.tensor == 0

    def counts(self, parameter: torch.nn.Parameter) -> bool:
        """Whether this rank's part of a parameter belongs into a sum over the model group.

        The rule is DeepSpeed's: what is marked `ds_pipe_replicated` (a tied embedding's copy on the
        last stage) never does, what is marked `model_parallel` (divided among tensor ranks) always,
        anything else on the first tensor rank.
        """
        divided = getattr(parameter, "model_parallel", False)
        copied = getattr(parameter, "ds_pipe_replicated", False)
        return not copied and (divided or self.tensor == 0)

    def sum_over_model(self, value: torch.Tensor) -> torch.Tensor:
        """Add a tensor up, in place, over the ranks that make one model."""
        if self.model_group is not None:
            dist.all_reduce(value, group=self.model_group)
        return value

    def at(
        self, *, pipe: int | None = None, data: int | None = None, tensor: int | None = None
    ) -> int:
        """Return the rank at these coordinates; those left out are this rank's own."""
        pipe = self.pipe if pipe is None else pipe
        data = self.data if data is None else data
        tensor = self.tensor if tensor is None else tensor
        return (pipe * self.ranks + data) * self.tp + tensor

    @property
    def data_ranks(self) -> tuple[int, ...]:
        """The ranks of `data_group`, in its order."""
        return tuple(self.at(data=data) for data in range(self.ranks))

    @property
    def pipe_ranks(self) -> tuple[int, ...]:
        """The ranks of `pipe_group`, in the order of the stages."""
        return tuple(self.at(pipe=pipe) for pipe in range(self.pp))

    @property
    def tensor_ranks(self) -> tuple[int, ...]:
        """The ranks of `tensor_group`, in its order."""
        return tuple(self.at(tensor=tensor) for tensor in range(self.tp))

    @property
    def model_ranks(self) -> tuple[int, ...]:
        """The ranks of `model_group`, in its order."""
        pairs = ((pipe, tensor) for pipe in range(self.pp) for tensor in range(self.tp))
        return tuple(self.at(pipe=pipe, tensor=tensor) for pipe, tensor in pairs)

    def replica(self, plan: Plan) -> tuple[int, tuple[int, ...]]:
        """Return the number of this rank's replica, and the ranks that share its rows."""
        number, members = plan.replica(self.data)
        return number, tuple(self.at(data=data) for data in members)

    @property
    def mpu(self) -> ModelParallelUnit | None:
        """What DeepSpeed is told; None where it is to know of data ranks only."""
        return ModelParallelUnit(self) if self.tp * self.pp > 1 else None


ALONE = Mesh(0, 1)


def mesh_of(rank: int, plan: Plan) -> Mesh:
    """Return a rank's place without groups."""
    return Mesh(rank, plan.ranks, plan.tp, plan.pp)


def join_mesh(gang: Gang, plan: Plan) -> Mesh:
    """Place this rank and make its groups; all ranks must call it, and each makes as many."""
    mesh = mesh_of(gang.world.rank, plan)
    if mesh.mpu is None:
        return mesh
    return replace(
        mesh,
        data_group=gang.group(mesh.data_ranks),
        pipe_group=gang.group(mesh.pipe_ranks),
        tensor_group=gang.group(mesh.tensor_ranks),
        model_group=gang.group(mesh.model_ranks),
    )


class ModelParallelUnit:
    """A mesh under the names by which DeepSpeed asks for it (deepspeed/utils/groups.py, bwc.py).

    DeepSpeed adds the squares of gradients up over the model group, and counts as `Mesh.counts`.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def get_data_parallel_group(self) -> Any:
        """Return the group among which ZeRO divides."""
        return self._mesh.data_group

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Return its ranks."""
        return list(self._mesh.data_ranks)

    def get_data_parallel_world_size(self) -> int:
        """Return how many they are."""
        return self._mesh.ranks

    def get_data_parallel_rank(self) -> int:
        """Return which of them this is."""
        return self._mesh.data

    def get_model_parallel_group(self) -> Any:
        """Return the group whose ranks make one whole model."""
        return self._mesh.model_group

    def get_model_parallel_world_size(self) -> int:
        """Return how many they are."""
        return self._mesh.pp * self._mesh.tp

    def get_model_parallel_rank(self) -> int:
        """Return which of them this is."""
        return self._mesh.pipe * self._mesh.tp + self._mesh.tensor

    def get_tensor_model_parallel_group(self) -> Any:
        """Return the group of the tensor ranks."""
        return self._mesh.tensor_group

    def get_tensor_model_parallel_world_size(self) -> int:
        """Return how many they are."""
        return self._mesh.tp

    def get_tensor_model_parallel_rank(self) -> int:
        """Return which of them this is."""
        return self._mesh.tensor

    def get_tensor_model_parallel_src_rank(self) -> int:
        """Return the first of them."""
        return self._mesh.at(tensor=0)

    def get_pipeline_model_parallel_group(self) -> Any:
        """Return the group of the stages."""
        return self._mesh.pipe_group

    def get_pipeline_model_parallel_world_size(self) -> int:
        """Return how many they are."""
        return self._mesh.pp

    def get_pipeline_model_parallel_rank(self) -> int:
        """Return which of them this is."""
        return self._mesh.pipe
