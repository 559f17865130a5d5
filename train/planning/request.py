"""What the planner is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from train.config import LoraConfig
from train.planning.cluster import Cluster
from train.planning.pins import Implementation, Pins
from train.planning.plan import Plan
from train.planning.shape import Shape


@dataclass(frozen=True)
class PlanRequest:
    """One question: this model, on this cluster, with this batch; `pins` fix parts of the plan.

    `lengths` are of the samples as trained (truncated); `loss_fraction` is the share of tokens
    that carry loss; `fused` says that norms, gated products and the loss are single kernels
    (Liger's, on GPUs that have them); `packable` that its attention takes packed samples, without
    which ranks cannot share a row; `divisible` that its layers can be cut into pipeline stages, and
    `shardable` that its matrices can be divided among tensor ranks. `implementation` describes
    other people's run, which keeps its own accounts; None is a run of this project. `repeats_keys`:
    this torch's attention has no grouped heads. `quantize`: the 4-bit type of the frozen base's
    matrices.
    """

    shape: Shape
    cluster: Cluster
    batch_size: int
    block_size: int
    precision: str = "bf16"
    lora: LoraConfig | None = None
    lengths: Sequence[int] | Mapping[int, float] | None = None
    loss_fraction: float = 1.0
    fused: bool = False
    packable: bool = True
    divisible: bool = True
    shardable: bool = True
    pins: Pins = field(default_factory=Pins)
    implementation: Implementation | None = None
    repeats_keys: bool = False
    quantize: str | None = None


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the peak of a step, by what they hold."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    buffers: float
    reserve: float

    @property
    def total(self) -> float:
        """All of it."""
        states = self.weights + self.gradients + self.optimizer
        return states + self.activations + self.logits + self.buffers + self.reserve


@dataclass(frozen=True)
class Duration:
    """Seconds of one optimizer step; each is what is not hidden behind the others."""

    compute: float
    communication: float
    pipeline: float
    offload: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.compute + self.communication + self.pipeline + self.offload


@dataclass(frozen=True)
class Candidate:
    """A legal plan with what it is predicted to cost; `reason` says why it does not fit."""

    plan: Plan
    memory: Memory
    host_memory: float
    time: Duration
    tokens_per_s: float
    mfu: float
    fits: bool
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the candidate as DESIGN's `--json` object."""
        return {
            "plan": self.plan.to_json(),
            "memory": asdict(self.memory) | {"total": self.memory.total},
            "host_memory": self.host_memory,
            "time": asdict(self.time) | {"total": self.time.total},
            "tokens_per_s": self.tokens_per_s,
            "tokens_per_s_per_gpu": self.tokens_per_s / self.plan.gpus,
            "mfu": self.mfu,
            "fits": self.fits,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Choice:
    """Every legal plan, those that fit first, without offload before with it; and the chosen."""

    candidates: tuple[Candidate, ...]
    chosen: Candidate | None
    nearest: str | None
    rejected: Mapping[str, int]

    @property
    def possible(self) -> tuple[Candidate, ...]:
        """Those that fit."""
        return tuple(candidate for candidate in self.candidates if candidate.fits)
