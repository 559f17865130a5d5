"""Twins of the parts that need torch, in numpy, and values that many tests need."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from train.data.batch import MicroBatch
from train.data.order import Mixture
from train.errors import NonFiniteError
from train.hosts.probe import HostReport
from train.planning.balance import Pace


@dataclass(frozen=True)
class FakeSplit:
    """Samples whose tokens are their number, of given lengths; all but the first carry loss."""

    lengths: np.ndarray
    fingerprint: str = "fake"

    @property
    def loss_tokens(self) -> np.ndarray:
        return self.lengths - 1

    @property
    def mixture(self) -> Mixture:
        return Mixture((len(self.lengths),), (len(self.lengths),))

    def __len__(self) -> int:
        return len(self.lengths)

    def sample(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        length = int(self.lengths[number])
        return np.full(length, number, np.int32), np.arange(length) > 0


@dataclass(frozen=True)
class FakeResult:
    loss: float
    grad_norm: float
    stop: bool = False
    skipped: int = 0


@dataclass
class FakeEngine:
    """Learns one number, the mean token, by gradient descent, exactly as an engine would."""

    value: float = 0.0
    bad_samples: frozenset[int] = frozenset()
    seen: list[tuple[int, ...]] = field(default_factory=list)
    measured: list[list[Pace]] = field(default_factory=list)

    def step(
        self,
        step: int,
        micros: Sequence[MicroBatch],
        loss_tokens: int,
        lr: float,
        *,
        stop: bool = False,
    ) -> FakeResult:
        labels = np.concatenate([m.labels[m.labels >= 0] for m in micros])
        samples = sorted({int(i) for m in micros for i in m.samples if i >= 0})
        self.seen.append(tuple(samples))
        if self.bad_samples & set(samples):
            raise NonFiniteError(f"step {step + 1} is not finite in samples {samples}")
        errors = self.value - labels
        gradient = 2 * errors.sum() / loss_tokens
        self.value -= lr * gradient
        return FakeResult(float((errors**2).sum() / loss_tokens), math.fabs(gradient), stop)

    def evaluate(self, batches: Iterable[Sequence[MicroBatch]]) -> tuple[float, int]:
        labels = np.concatenate([m.labels[m.labels >= 0] for ms in batches for m in ms])
        return float(((self.value - labels) ** 2).sum()), len(labels)

    def agree(self, *, wish: bool) -> bool:
        return wish

    def paces(self) -> list[Pace]:
        return self.measured.pop(0)

    def peak_bytes(self) -> int:
        return 1


def host_report(**changed: Any) -> HostReport:
    """What a host without GPUs says, on which all is well."""
    found: dict[str, Any] = {
        "host": "a", "python": "3.11.7", "executable": "/v/python", "code": "c0de",
        "device": "cpu", "packages": {"torch": "2.13.0"}, "gpus": (), "usage": (),
        "restricted": False, "error": "", "time": 100.0, "port": 29500, "cores": 8,
        "memory": 64 * 10**9, "available": 60 * 10**9, "shm": 8 * 10**9, "disk": 500 * 10**9,
        "files": 65536, "locked": -1, "infiniband": False, "shared": True,
    }  # fmt: skip
    return HostReport(**{**found, **changed})
