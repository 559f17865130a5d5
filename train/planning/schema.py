"""Every key that DeepSpeed 0.19.8 accepts, and what anyrank does with it.

A key is either *kept* (its value has a kind, and goes to DeepSpeed as it is), a *pin* (it fixes a
part of the plan), *stated* (an argument of the run says it, and must say the same), or *refused*,
because DeepSpeed removed it, or because it would change what a step computes. DeepSpeed itself
ignores most unknown keys without a word, so nothing reaches it that is not named here.
Source: deepspeed/runtime/config.py, zero/config.py, zero/offload_config.py, constants.py (0.19.8).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Kept:
    """A value of one kind: flag, count (whole, at least `low`), share (0 to 1), number, text.

    `unset` is a value with which it is not set.
    """

    kind: str
    choices: tuple[str, ...] = ()
    low: int = 0
    unset: object = None


@dataclass(frozen=True)
class Refused:
    """Why the key is refused and what to do instead, as the second half of a sentence.

    It passes where its value switches it off: false, an object that is not enabled or holds only
    false and 0, or `off`.
    """

    instead: str
    off: object = None

    def says_nothing(self, value: object) -> bool:
        """Whether a value only switches off what is not there."""
        if isinstance(value, dict) and value:
            value = value.get("enabled", any(value.values()))
        return value is False or (self.off is not None and value == self.off)


@dataclass(frozen=True)
class Stated:
    """What an argument of the run says: compared with it in `stated.py`."""


@dataclass(frozen=True)
class Section:
    """An object with keys of its own."""

    keys: Mapping[str, Entry]


Entry = Kept | Refused | Stated | Section

FLAG = Kept("flag")
COUNT = Kept("count")
SIZE = Kept("count", low=1)
DTYPE = Kept("text", ("fp32", "bf16"))

STATED = Stated()

REMOVED = Refused("DeepSpeed 0.19.8 has removed it; leave it out")
_MATHEMATICS = Refused("it would change what a step computes; leave it out")
_MONITOR = Refused("curves are written by --report-to, as --report-to wandb; leave it out")
_OFFLOAD_FLAG = Refused('write "offload_optimizer": {"device": "cpu"} instead')
_CHECKPOINT = Refused("checkpoints are set by --save-step, --keep and --resume; leave it out")
_LAYOUT = Refused("the planner lays the step out; use --pin tp, --pin pp or --pin sp")
_NOT_USED = Refused("anyrank does not use it; leave it out")
_NVME = Refused("states are kept on the GPU or in host memory only; leave it out")

_OFFLOAD_PARAM = Section({
    "device": Kept("text", ("none", "cpu")), "pin_memory": FLAG,
    "buffer_count": SIZE, "buffer_size": SIZE, "max_in_cpu": COUNT, "nvme_path": _NVME,
})  # fmt: skip
_OFFLOAD_OPTIMIZER = Section({
    "device": Kept("text", ("none", "cpu")), "pin_memory": FLAG, "ratio": Kept("share"),
    "cpuadam_cores_perc": Kept("share"), "buffer_count": SIZE, "fast_init": FLAG,
    "nvme_path": _NVME, "pipeline_read": _NVME, "pipeline_write": _NVME,
    "super_offload": _NOT_USED,
})  # fmt: skip

ZERO = Section({
    "stage": Kept("text", ("0", "1", "2", "3")),
    "offload_param": _OFFLOAD_PARAM, "offload_optimizer": _OFFLOAD_OPTIMIZER,
    "contiguous_gradients": FLAG, "reduce_scatter": FLAG, "reduce_bucket_size": SIZE,
    "use_multi_rank_bucket_allreduce": FLAG, "allgather_partitions": FLAG,
    "allgather_bucket_size": SIZE, "overlap_comm": FLAG, "load_from_fp32_weights": FLAG,
    "sub_group_size": Kept("count", low=1, unset=0), "stage3_prefetch_bucket_size": COUNT,
    "stage3_param_persistence_threshold": COUNT, "stage3_model_persistence_threshold": COUNT,
    "stage3_max_live_parameters": COUNT, "stage3_max_reuse_distance": COUNT,
    "stage3_gather_16bit_weights_on_model_save": FLAG,
    "stage3_module_granularity_threshold": COUNT, "stage3_use_all_reduce_for_fetch_params": FLAG,
    "stage3_allgather_sequential": FLAG, "ignore_unused_parameters": FLAG,
    "round_robin_gradients": FLAG, "parameter_alignment": FLAG,
    "zero_hpz_partition_size": SIZE, "memory_efficient_linear": FLAG,
    "log_trace_cache_warnings": FLAG, "enable_sanity_checks": FLAG,
    "zero_quantized_weights": _MATHEMATICS, "zero_quantized_nontrainable_weights": _MATHEMATICS,
    "zero_quantized_gradients": _MATHEMATICS, "zenflow": _MATHEMATICS,
    "compute_grad_norm": _NOT_USED, "legacy_stage1": _NOT_USED, "leaf_module": _NOT_USED,
    "override_module_apply": _NOT_USED, "pipeline_loading_checkpoint": _NOT_USED,
    "save_muon_momentum_buffer_in_memory": _NOT_USED,
    "stage3_gather_fp16_weights_on_model_save": _NOT_USED,
    "elastic_checkpoint": _CHECKPOINT, "cpu_offload": _OFFLOAD_FLAG,
    "cpu_offload_param": Refused('write "offload_param": {"device": "cpu"} instead'),
    "cpu_offload_use_pin_memory": _OFFLOAD_FLAG,
    "mics_shard_size": Refused(REMOVED.instead, off=-1), "mics_hierarchical_params_gather": REMOVED,
    "zeropp_loco_param": REMOVED,
})  # fmt: skip

ROOT = Section({
    "zero_optimization": ZERO,
    "bf16": Section({"enabled": STATED, "immediate_grad_update": FLAG, "check_grad_overflow": FLAG,
                     "bf16_master_weights_and_grads": _MATHEMATICS,
                     "bf16_optimizer_states": _MATHEMATICS}),
    "activation_checkpointing": Section({
        "partition_activations": FLAG, "contiguous_memory_optimization": FLAG,
        "number_checkpoints": SIZE, "synchronize_checkpoint_boundary": FLAG, "profile": FLAG,
        "cpu_checkpointing": Refused("activations stay on the GPU; leave it out"),
    }),
    "anyrank": Section({
        "micro_tokens": SIZE, "recompute": Kept("text", ("none", "selective", "full")),
        "offload": Kept("text", ("none", "optimizer", "all")), "dp": SIZE, "tp": SIZE, "pp": SIZE,
        "sp": SIZE, "replicas": Kept("text"), "hpz": SIZE, "balance": Kept("text", ("on", "off")),
    }),
    "communication_data_type": DTYPE,
    "data_types": Section({"grad_accum_dtype": DTYPE, "param_dtype": _NOT_USED,
                           "buffer_dtype": _NOT_USED, "keep_in_fp32_modules": _NOT_USED}),
    "steps_per_print": SIZE, "wall_clock_breakdown": FLAG, "memory_breakdown": FLAG,
    "dump_state": FLAG, "disable_python_gc": FLAG,
    "log_level": Kept("text", ("debug", "info", "warning", "error", "critical")),
    "flops_profiler": Section({
        "enabled": FLAG, "recompute_fwd_factor": Kept("number"), "profile_step": SIZE,
        "module_depth": Kept("count", low=-1), "top_modules": SIZE, "detailed": FLAG,
        "output_file": Kept("text"),
    }),
    "comms_logger": Section({"enabled": FLAG, "prof_all": FLAG, "verbose": FLAG, "debug": FLAG,
                             "prof_ops": Refused(_NOT_USED.instead, off=[])}),
    "zero_allow_untested_optimizer": FLAG, "zero_force_ds_cpu_optimizer": FLAG,
    "train_batch_size": STATED, "train_micro_batch_size_per_gpu": STATED,
    "gradient_accumulation_steps": STATED, "managed_gradient_accumulation": _LAYOUT,
    "gradient_clipping": STATED,
    "optimizer": Section({
        "type": STATED, "legacy_fusion": _NOT_USED,
        "params": Section(dict.fromkeys((
            "lr", "weight_decay", "betas", "eps", "bias_correction", "adam_w_mode", "amsgrad",
        ), STATED) | {"torch_adam": FLAG, "fused": FLAG}),
    }),
    "scheduler": Section({
        "type": STATED,
        "params": Section(dict.fromkeys((
            "warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type", "total_num_steps",
            "warmup_min_ratio", "cos_min_ratio", "last_batch_iteration",
        ), STATED)),
    }),
    "fp16": Section(dict.fromkeys((
        "enabled", "auto_cast", "loss_scale", "initial_scale_power", "loss_scale_window",
        "hysteresis", "consecutive_hysteresis", "min_loss_scale", "fp16_master_weights_and_grads",
    ), STATED)),
    "torch_autocast": Refused("the precision is set by --precision; leave it out"),
    "tensorboard": _MONITOR, "wandb": _MONITOR, "csv_monitor": _MONITOR, "comet": _MONITOR,
    "checkpoint": _CHECKPOINT, "datastates_ckpt": _CHECKPOINT,
    "tensor_parallel": _LAYOUT, "pipeline": _LAYOUT,
    "sequence_parallel_size": Refused(_LAYOUT.instead, off=1),
    "expert_parallel": _LAYOUT, "use_data_before_expert_parallelism": _LAYOUT,
    "seq_parallel_communication_data_type": _LAYOUT,
    "autotuning": Refused("`anyrank plan` chooses without trial runs; leave it out"),
    "prescale_gradients": _MATHEMATICS,
    "gradient_predivide_factor": Refused(_MATHEMATICS.instead, off=1),
    "gradient_allreduce_op": _MATHEMATICS, "data_efficiency": _MATHEMATICS,
    "weight_quantization": _MATHEMATICS, "disable_allgather": _NOT_USED,
    "hybrid_engine": _NOT_USED, "compile": _NOT_USED, "timers": _NOT_USED, "aio": _NVME,
    "dataloader_drop_last": _NOT_USED,
    "vocabulary_size": _NOT_USED,
    "nebula": REMOVED, "compression_training": REMOVED, "amp": REMOVED,
    "quantize_training": REMOVED, "sparse_gradients": REMOVED, "eigenvalue": REMOVED,
    "sparse_attention": REMOVED, "graph_harvesting": REMOVED, "curriculum_learning": REMOVED,
    "progressive_layer_drop": REMOVED,
    "elasticity": Refused("DeepSpeed 0.19.8 has removed it and a run takes any number of GPUs "
                          "without it; leave it out"),
})  # fmt: skip

# DeepSpeed takes both names of these; only the first is used from here on.
ALIASES = {
    "bfloat16": "bf16",
    "prefetch_bucket_size": "stage3_prefetch_bucket_size",
    "param_persistence_threshold": "stage3_param_persistence_threshold",
    "model_persistence_threshold": "stage3_model_persistence_threshold",
    "max_live_parameters": "stage3_max_live_parameters",
    "max_reuse_distance": "stage3_max_reuse_distance",
    "gather_16bit_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
    "module_granularity_threshold": "stage3_module_granularity_threshold",
    "use_all_reduce_for_fetch_params": "stage3_use_all_reduce_for_fetch_params",
    "allgather_sequential": "stage3_allgather_sequential",
}
