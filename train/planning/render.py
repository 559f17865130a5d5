"""A plan as DeepSpeed's dictionary, every value written out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from train.config import ModelConfig, OptimizerConfig
from train.planning.buckets import buckets_of
from train.planning.dsconfig import HPZ, DsConfig
from train.planning.plan import Plan, require_fp32_sums
from train.planning.shape import Shape


def render(
    plan: Plan, shape: Shape, model: ModelConfig, optimizer: OptimizerConfig, ds: DsConfig
) -> dict[str, Any]:
    """Return the dictionary for `deepspeed.initialize`.

    The triangle holds with one "sample" and one step of accumulation, because the loop says itself
    where a step ends and scales the loss itself. What `ds` sets wins over what is computed here,
    but for `overlap_comm` with several stages: they reduce when all micro-batches have come back.

    Raises:
        PlanError: ZeRO-0 in bf16 or fp16.
    """
    require_fp32_sums(plan.zero, model.precision)
    made: dict[str, Any] = {
        "train_batch_size": plan.ranks,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.max_grad_norm,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "bf16": {"enabled": model.precision == "bf16"},
        # The step scales the losses itself: to DeepSpeed that is no scale, and none that changes.
        "fp16": {"enabled": model.precision == "fp16", "loss_scale": 1.0},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": _zero(plan, shape),
        "wall_clock_breakdown": False,
    }
    found = _merged(made, ds.extra)
    if plan.pp > 1 and plan.zero:
        found["zero_optimization"]["overlap_comm"] = False
    return found


def _zero(plan: Plan, shape: Shape) -> dict[str, Any]:
    sizes = buckets_of(shape)
    zero: dict[str, Any] = {"stage": plan.zero}
    if plan.zero == 0:
        return zero
    zero |= {
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": sizes.reduce,
        "allgather_bucket_size": sizes.reduce,
        "overlap_comm": plan.gpus > 1,
        "round_robin_gradients": False,
        "sub_group_size": sizes.sub_group,
    }
    if plan.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if plan.zero == 3:
        zero |= {
            "stage3_prefetch_bucket_size": sizes.prefetch,
            "stage3_param_persistence_threshold": sizes.persistence,
            "stage3_max_live_parameters": sizes.live,
            "stage3_max_reuse_distance": sizes.reuse,
            "stage3_gather_16bit_weights_on_model_save": False,
        }
        if plan.hpz > 1:
            zero[HPZ] = plan.hpz
        if plan.offload == "all":
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return zero


def _merged(made: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(made)
    for key, value in given.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            result[key] = _merged(old, value)
        else:
            result[key] = value
    return result
