"""Where ranks stand: coordinates and the members of groups."""

from __future__ import annotations

import pytest
import torch

from train.engine.mesh import mesh_of
from train.planning import Plan


def plan(dp: int, pp: int = 1, tp: int = 1, sp: int = 1) -> Plan:
    return Plan(zero=1, micro_tokens=8, dp=dp, pp=pp, tp=tp, sp=sp)


@pytest.mark.parametrize("degrees", [(3, 1, 1), (2, 3, 2), (1, 4, 1), (4, 1, 2), (2, 2, 2)])
def test_every_rank_has_a_place_of_its_own_and_finds_itself_there(degrees):
    layout = plan(*degrees)
    meshes = [mesh_of(rank, layout) for rank in range(layout.gpus)]
    places = {(mesh.pipe, mesh.data, mesh.tensor) for mesh in meshes}
    assert len(places) == layout.gpus
    for rank, mesh in enumerate(meshes):
        assert mesh.at() == rank == (mesh.pipe * mesh.ranks + mesh.data) * mesh.tp + mesh.tensor
        assert mesh.data_ranks[mesh.data] == mesh.pipe_ranks[mesh.pipe] == rank
        assert mesh.tensor_ranks[mesh.tensor] == rank
        assert mesh.model_ranks[mesh.pipe * mesh.tp + mesh.tensor] == rank
    for kind in ("data_ranks", "pipe_ranks", "tensor_ranks", "model_ranks"):
        groups = {getattr(mesh, kind) for mesh in meshes}
        assert sorted(rank for group in groups for rank in group) == list(range(layout.gpus))


def test_ranks_that_share_rows_are_of_one_stage_and_one_tensor_rank():
    mesh = mesh_of(13, plan(2, pp=2, tp=2, sp=2))
    assert (mesh.pipe, mesh.data, mesh.tensor) == (1, 2, 1)
    assert mesh.replica(plan(2, pp=2, tp=2, sp=2)) == (1, (13, 15))
    assert mesh.tensor_ranks == (12, 13)


def test_one_rank_of_each_model_speaks_for_its_losses():
    meshes = [mesh_of(rank, plan(3, pp=2, tp=2)) for rank in range(12)]
    assert [mesh.rank for mesh in meshes if mesh.speaks] == [6, 8, 10]


def test_each_parameter_is_counted_once_over_a_model():
    def marked(**marks: bool) -> torch.nn.Parameter:
        parameter = torch.nn.Parameter(torch.zeros(1))
        for name, value in marks.items():
            setattr(parameter, name, value)
        return parameter

    meshes = [mesh_of(rank, plan(1, pp=2, tp=2)) for rank in range(4)]
    counted = [[mesh.counts(p) for mesh in meshes] for p in (
        marked(), marked(model_parallel=True), marked(model_parallel=True, ds_pipe_replicated=True)
    )]  # fmt: skip
    assert counted == [[True, False, True, False], [True] * 4, [False] * 4]


def test_deepspeed_is_told_of_no_mesh_without_pipeline_and_tensor_degrees():
    assert mesh_of(2, plan(2, sp=2)).mpu is None
    unit = mesh_of(5, plan(2, pp=2, tp=2)).mpu
    assert unit.get_model_parallel_rank() == 3
    assert unit.get_data_parallel_group_ranks() == [5, 7]
