"""From a plan to a running engine: the model loaded, the optimizer made, DeepSpeed initialised."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

from train.config import RunConfig
from train.data.batch import MicroBatch
from train.engine import model as models
from train.engine.gang import Gang
from train.engine.inputs import Inputs, packed_inputs, padded_inputs
from train.engine.mesh import Mesh, join_mesh
from train.engine.pace import Stopwatch
from train.engine.recompute import recompute
from train.engine.scale import LossScale
from train.engine.step import Engine, peak_bytes
from train.errors import ConfigError
from train.locking import locked
from train.planning.plan import Plan

BETAS, EPS = (0.9, 0.999), 1e-8


def start(
    gang: Gang,
    config: RunConfig,
    folder: Path,
    plan: Plan,
    zero: dict[str, Any],
    *,
    packed: bool = True,
    fused: bool = True,
) -> Engine:
    """Load the model under the plan and wrap it.

    Args:
        folder: the model's local folder.
        zero: DeepSpeed's dictionary, as rendered from the plan.
        packed: pack samples where the model allows it; False pads them, for comparison.
        fused: use Liger's kernels where they are right; False does not, for comparison.

    Raises:
        ModelError: the folder does not hold a model that can be trained here.
        ConfigError: the device has no fp16, which was asked for.
    """
    require_device(config.model.precision)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    mesh = join_mesh(gang, plan)
    before = 0 if gang.device.type == "cuda" else peak_bytes(gang.device)
    loaded = models.load(
        folder, config.model, zero, gang.device, config.data.seed, packed=packed, fused=fused,
        longest=config.data.block_size, mesh=mesh,
    )  # fmt: skip
    recompute(loaded.module, plan.recompute)
    groups = parameter_groups(loaded.module, config.optimizer.weight_decay)
    deepspeed.utils.groups.mpu = mesh.mpu  # DeepSpeed would keep that of the engine before
    with _quiet():  # its memory reports, which no setting switches off
        wrapped, *_ = deepspeed.initialize(
            model=loaded.runs,
            optimizer=_optimizer(groups, config.optimizer.lr, plan),
            mpu=mesh.mpu,
            # Without ZeRO the step clips for itself, since DeepSpeed would not say the norm.
            config=zero if plan.zero else {**zero, "gradient_clipping": 0.0},
        )
    inputs = _shared_inputs(gang, mesh, plan) if loaded.packed else padded_inputs
    scale = LossScale.of(config.model.precision)
    limit = config.optimizer.max_grad_norm
    watch = Stopwatch(loaded.module, gang.device) if plan.balances else None
    return Engine(gang, mesh, loaded, wrapped, limit, inputs, before, scale, watch)


def require_device(precision: str) -> None:
    """Refuse fp16 where the device has none, before anything is loaded.

    Raises:
        ConfigError: it says which devices have it.
    """
    if precision == "fp16" and not get_accelerator().is_fp16_supported():
        raise ConfigError(
            "--precision fp16 needs a GPU, from sm_70 on if it is NVIDIA's, or a processor with "
            "AVX512-FP16, but this device has neither: use --precision fp32"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what a library prints to itself, unless it fails."""
    said = StringIO()
    try:
        with redirect_stdout(said):
            yield
    except BaseException:
        print(said.getvalue(), end="", flush=True)
        raise


def _shared_inputs(
    gang: Gang, mesh: Mesh, plan: Plan
) -> Callable[[MicroBatch, torch.device], Inputs]:
    """Return what lays out this rank's part of a row.

    Where any ranks share rows, a rank alone makes a group, too: every rank must make as many.
    """
    _, ranks = mesh.replica(plan)
    return partial(packed_inputs, replica=gang.replica(ranks) if plan.ranks > plan.dp else None)


def parameter_groups(module: torch.nn.Module, decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into matrices, which decay, and vectors, which do not."""
    trained = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in trained if len(getattr(p, "ds_shape", p.shape)) > 1]
    chosen = {id(p) for p in matrices}
    vectors = [p for p in trained if id(p) not in chosen]
    groups = [
        {"params": matrices, "weight_decay": decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _optimizer(groups: list[dict[str, Any]], lr: float, plan: Plan) -> torch.optim.Optimizer:
    if plan.offload != "none":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        _build_cpu_adam()
        offloaded: torch.optim.Optimizer = DeepSpeedCPUAdam(
            groups, lr=lr, betas=BETAS, eps=EPS, adamw_mode=True
        )
        return offloaded
    return torch.optim.AdamW(groups, lr=lr, betas=BETAS, eps=EPS, fused=True)


def _build_cpu_adam() -> None:
    """Compile DeepSpeed's CPU Adam, once per user and host.

    torch marks a build by a file, and waits for ever on that of a build that was killed. The
    lock here ends with its process, so whoever holds it knows such a file to be a leftover. torch
    looks for ninja on PATH, where that of an environment that is not activated does not lie; and
    ninja of another version compiles everything anew.

    Raises:
        ConfigError: it cannot be compiled.
    """
    from deepspeed.ops.op_builder import CPUAdamBuilder
    from torch.utils.cpp_extension import _get_build_directory

    try:
        import ninja

        folder = Path(_get_build_directory(CPUAdamBuilder.NAME, verbose=False))
        with locked(folder.with_name("anyrank-cpu-adam.lock")), _quiet(), _on_path(ninja.BIN_DIR):
            (folder / "lock").unlink(missing_ok=True)
            CPUAdamBuilder().load(verbose=False)
    except (RuntimeError, OSError, ImportError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"the optimizer cannot be offloaded, since DeepSpeed's CPU Adam was not built "
            f"({first}): install g++ and ninja, or give --pin offload=none"
        ) from None


@contextmanager
def _on_path(folder: str) -> Iterator[None]:
    """Let the programs of a folder be found before all others."""
    path = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join(filter(None, (folder, path)))
    try:
        yield
    finally:
        os.environ["PATH"] = path
