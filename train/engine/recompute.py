"""Activations that are computed again in the backward pass instead of kept."""

from __future__ import annotations

from typing import Any

import torch


def recompute(module: Any, mode: str) -> None:
    """Recompute activations in the backward pass: `none`, `selective` or `full`, layer by layer."""
    if mode == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        options["context_fn"] = _selective
    base: Any = module.get_base_model() if hasattr(module, "get_base_model") else module
    enable = getattr(base, "activation_checkpointing_enable", None)
    if enable is not None:
        enable(activation_checkpointing_kwargs=options)
    else:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def _selective() -> Any:
    """Keep the products, tensor ranks' sums of them, and the attention; recompute the rest."""
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    kept = {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops._c10d_functional.all_reduce.default,  # noqa: SLF001
    }

    def policy(_: Any, operation: Any, *__: Any, **___: Any) -> CheckpointPolicy:
        # torch's own attention on CPU, and its variable-length kernel on CUDA.
        keep = operation in kept or any(word in str(operation) for word in ("attention", "attn"))
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
