"""Liger's kernels for the modules of one loaded model, and for its loss fused with the head.

Modules get a forward of their own. Liger's `_apply_liger_kernel_to_instance` would also replace
classes in transformers' module, for every later model of the process. Weights are read in the
forward of the module that owns them, which is where ZeRO-3 has gathered them. The rotation stays
transformers': it is a function of its module, and no public way replaces it for one model alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from transformers import PreTrainedModel

from train.engine.loss import summed_cross_entropy
from train.planning.activations import LOSS_ROWS

# Model types whose modules were compared with the plain ones (tests/engine/test_kernels.py): what
# their norms add to the weight, and where they round.
NORMS = {
    **dict.fromkeys(("llama", "mistral", "phi3", "qwen2", "qwen3"), (0.0, "llama")),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), (1.0, "gemma")),
}
GATES = {
    "silu": ("SwiGLU", "LigerSiLUMulFunction"),
    "gelu_pytorch_tanh": ("GeGLU", "LigerGELUMulFunction"),
}
DEVICES = ("cuda",)
REFUSED = (
    "Liger kernels do not run here ({}): plain modules are used; a C compiler and Python's headers "
    "make steps faster (on Debian: apt-get install gcc python3-dev)"
)
HINT = "Liger kernels are not installed: `pip install 'liger-kernel>=0.8.5,<0.9'` for faster steps"


class FusedHead:
    """The forward of a model's head: losses instead of the logits, when it is given targets.

    It runs inside the head's own forward, so no other module reads the head's weight.
    """

    def __init__(self, linear: Any) -> None:
        self._linear, self._plain = linear, linear.forward
        self._targets: tuple[torch.Tensor, float] | None = None
        linear.forward = self

    def set_targets(self, targets: torch.Tensor, scale: float) -> None:
        """Have the next forward, and only that, return what `summed_cross_entropy` does.

        A model's forward hands nothing through to its head but hidden states.

        Args:
            targets: int64 (K,), for the K hidden states that the head will be given.
            scale: a factor.
        """
        self._targets = targets, scale

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of (1, K, hidden); with targets the scaled loss and the plain sum."""
        given, self._targets = self._targets, None
        if given is None:
            logits: torch.Tensor = self._plain(hidden)
            return logits
        rows = hidden.reshape(-1, hidden.shape[-1])
        if self._saves(rows):
            return self._fused(rows, *given)
        return summed_cross_entropy(self._plain(rows), *given)

    def _saves(self, rows: torch.Tensor) -> bool:
        """Whether slices need less memory than the logits of all rows.

        The gradient of a trained weight adds up over the slices, in fp32: beside a gradient in
        bf16 that is as much as the logits of 2 x hidden rows.
        """
        weight = self._linear.weight
        trained = weight.requires_grad and torch.is_grad_enabled()
        sums = 2 * weight.shape[1] if trained and weight.dtype != torch.float32 else 0
        return len(rows) > LOSS_ROWS + sums

    def _fused(
        self, rows: torch.Tensor, targets: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `summed_cross_entropy` would, with logits for about `LOSS_ROWS` at a time.

        Liger rounds the number to a power of 2.
        """
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        weight = self._linear.weight
        found = liger_fused_linear_cross_entropy(
            rows,
            weight,
            targets,
            bias=self._linear.bias,
            reduction="sum",
            accum_dtype=torch.float32,
            chunk_mem_const=max(1, LOSS_ROWS * weight.shape[0] // rows.numel()),
        )
        total = found.detach().double()
        return found * torch.where(total.isfinite(), scale, math.nan).float(), total


def liger_supported(model_type: str, device: str) -> bool:
    """Whether a model of this type would run with Liger's kernels on this type of device."""
    known = model_type in NORMS and device in DEVICES and _installed()
    return known and not (device == "cuda" and refused())


def _installed() -> bool:
    return None not in (find_spec("liger_kernel"), find_spec("triton"))


@cache
def refused() -> str:
    """Return why a kernel does not run on this GPU; empty if one does, there and back.

    Triton needs a C compiler and Python's headers; without them the first step would fail.
    """
    return tried(_multiply)


def tried(act: Callable[[], object]) -> str:
    """Return the first line of what an act raises; empty if it raises nothing."""
    try:
        act()
    except Exception as error:  # whatever a compiler, a driver or Triton says
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ""


def _multiply() -> None:
    from liger_kernel.ops import LigerSiLUMulFunction

    gate, up = (torch.ones(2, 64, device="cuda", requires_grad=True) for _ in range(2))
    LigerSiLUMulFunction.apply(gate, up).sum().backward()
    torch.cuda.synchronize()


def fuse(
    model: PreTrainedModel, device: torch.device, *, supports_logits_to_keep: bool
) -> tuple[FusedHead | None, tuple[str, ...]]:
    """Give the model's modules Liger's kernels where these are right; say so in a notice.

    Args:
        supports_logits_to_keep: the model gives the logits of some tokens, so its head may be
            fused.

    Returns:
        The fused head, if it is one, and the notices.
    """
    kind = str(model.config.model_type)
    if not liger_supported(kind, device.type):
        if device.type != "cuda" or kind not in NORMS:
            return None, ()
        return None, (REFUSED.format(refused()) if _installed() else HINT,)
    activation = getattr(model.config, "hidden_activation", None) or model.config.hidden_act
    gate, product = GATES.get(activation, ("", ""))
    for module in model.modules():
        name = type(module).__name__
        if name.endswith("RMSNorm"):
            _fuse_norm(module, *NORMS[kind])
        elif name.endswith("MLP") and gate:
            _fuse_gate(module, product)
    head = model.get_output_embeddings()
    capped = getattr(model.config, "final_logit_softcapping", None) is not None
    plain = supports_logits_to_keep and type(head) is torch.nn.Linear and not capped
    names = ["RMSNorm", gate, "fused linear cross-entropy" if plain else ""]
    notice = f"Liger kernels: {', '.join(name for name in names if name)}"
    return FusedHead(head) if plain else None, (notice,)


def _fuse_norm(module: Any, offset: float, casting: str) -> None:
    from liger_kernel.ops import LigerRMSNormFunction

    epsilon = getattr(module, "variance_epsilon", None) or module.eps

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        # Not in place: a residual may hold the gradient in which it would be written.
        found: torch.Tensor = LigerRMSNormFunction.apply(
            hidden, module.weight, epsilon, offset, casting, False
        )
        return found

    module.forward = forward


def _fuse_gate(module: Any, product: str) -> None:
    from liger_kernel import ops

    multiply = getattr(ops, product).apply
    both = hasattr(module, "gate_up_proj")

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        if both:
            gate, up = module.gate_up_proj(hidden).chunk(2, dim=-1)
        else:
            gate, up = module.gate_proj(hidden), module.up_proj(hidden)
        found: torch.Tensor = module.down_proj(multiply(gate, up))
        return found

    module.forward = forward
