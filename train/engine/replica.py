"""The ranks of one replica, and what they send one another so that every query finds its keys.

A rank needs the keys and values that its stretches see and other ranks hold. They are sent as they
are, each once, in one exchange for each layer and pass, and only between ranks that have something
to send. Their gradients go home the same way, and are added there in fp32, in the order of the
ranks, so that the result never depends on who was first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from train.data.divide import Division, Route, route


@dataclass(frozen=True)
class Replica:
    """Neighbouring ranks that share packed rows; this process is number `rank` of `ranks`.

    `ranks` are numbers in the whole job; `group` is torch's group of just these.
    """

    group: Any
    ranks: tuple[int, ...]
    rank: int


@dataclass(frozen=True)
class Keys:
    """Keys and values (1, heads, K, dimension) of all stretches, one after the other.

    `bounds`: where each stretch's begin, int32 (stretches + 1,); `longest`: tokens of the longest;
    `segments`: the bounds on the host, where they are known there; `masks`: what is added to the
    scores of a stretch, by its numbers of queries and keys, where that is kept for other layers.
    """

    key: torch.Tensor
    value: torch.Tensor
    bounds: torch.Tensor
    longest: int
    segments: tuple[int, ...] = ()
    masks: dict[tuple[int, int], torch.Tensor] | None = None


class SharedRow:
    """A packed row that the ranks of a replica share, as this rank's attention sees it.

    Routes are made once for each window, and used by all layers and passes.
    """

    def __init__(self, replica: Replica, division: Division, device: torch.device) -> None:
        self._replica, self._division, self._device = replica, division, device
        self._routes: dict[int | None, _Route] = {}
        self.longest = max(s.last - s.start for stretches in division for s in stretches)

    def keys(self, key: torch.Tensor, value: torch.Tensor, window: int | None) -> Keys:
        """Return the keys and values that this rank's stretches see; every rank must ask.

        Args:
            key, value: of this rank's own tokens, (1, heads, T, dimension).
        """
        if window not in self._routes:
            found = route(self._division, self._replica.rank, window)
            self._routes[window] = _Route.of(found, self._device)
        via = self._routes[window]
        if not via.trivial:
            widths = key.shape[-1], value.shape[-1]
            both = torch.cat([key, value], dim=-1).squeeze(0).transpose(0, 1)
            found = _Exchange.apply(both, self._replica, via).transpose(0, 1)[None]
            key, value = found.split(widths, dim=-1)
        return Keys(key, value, via.bounds, via.longest, via.segments, via.masks)


@dataclass(frozen=True)
class _Route:
    """A `Route` on the device; `trivial`: the keys are this rank's own, as they stand."""

    sends: tuple[torch.Tensor, ...]
    receives: tuple[int, ...]
    keys: torch.Tensor
    bounds: torch.Tensor
    longest: int
    segments: tuple[int, ...]
    trivial: bool
    masks: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    @staticmethod
    def of(found: Route, device: torch.device) -> _Route:
        if len(found.keys) == 0:  # a filler sees itself
            found = Route(found.sends, found.receives, np.zeros(1, np.int64), (0, 1))
        quiet = not any(map(len, found.sends)) and not any(found.receives)
        bounds = np.array(found.bounds, dtype=np.int32)
        return _Route(
            tuple(_on(device, places) for places in found.sends),
            found.receives,
            _on(device, found.keys),
            _on(device, bounds),
            int(np.diff(bounds).max()),
            tuple(bounds.tolist()),
            quiet and bool((found.keys == np.arange(len(found.keys))).all()),
        )


def _on(device: torch.device, values: np.ndarray) -> torch.Tensor:
    """Copy to the device without waiting for what it is doing."""
    found = torch.from_numpy(values)
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found


class _Exchange(torch.autograd.Function):
    """Own tokens (T, heads, width) to those that the stretches see, (K, heads, width)."""

    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, replica: Replica, via: _Route) -> torch.Tensor:
        ctx.replica, ctx.via, ctx.tokens = replica, via, len(own)
        parts = [own.index_select(0, places) for places in via.sends]
        come = [own.new_empty((count, *own.shape[1:])) for count in via.receives]
        _swap(replica, parts, come)
        return torch.cat([own, *come]).index_select(0, via.keys)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        via: _Route = ctx.via
        tokens: int = ctx.tokens
        shape = (tokens + sum(via.receives), *gradient.shape[1:])
        # A key is in two stretches at most, so that the order of this sum cannot matter.
        sums = gradient.new_zeros(shape, dtype=torch.float32)
        sums.index_add_(0, via.keys, gradient.float())
        parts = sums[tokens:].to(gradient.dtype).split(via.receives)
        come = [gradient.new_empty((len(places), *shape[1:])) for places in via.sends]
        _swap(ctx.replica, parts, come)
        for places, part in zip(via.sends, come, strict=True):
            sums.index_add_(0, places, part.float())
        return sums[:tokens].to(gradient.dtype), None, None


def _swap(replica: Replica, parts: Sequence[torch.Tensor], come: Sequence[torch.Tensor]) -> None:
    """Send `parts` to the replica's ranks and fill `come` with what they send; empty ones rest."""
    operations = []
    for peer, part, into in zip(replica.ranks, parts, come, strict=True):
        if part.numel():
            operations.append(dist.P2POp(dist.isend, part.contiguous(), peer, replica.group))
        if into.numel():
            operations.append(dist.P2POp(dist.irecv, into, peer, replica.group))
    for work in dist.batch_isend_irecv(operations) if operations else ():
        work.wait()
