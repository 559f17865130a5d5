"""A model cut into pipeline stages: each rank holds one, and the names of its parameters stay.

What another stage holds is replaced, before any weight is read, by a module that hands its input
on. The one before a stage's first layer hands on what came from the stage before instead. Whether a
family can be cut so is tried on a small model of its kind, as packing is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from train.engine.packing import VOCABULARY, small_model
from train.planning.plan import stage_layers


@dataclass(frozen=True)
class Stage:
    """Stage `number` of `count` of a model."""

    number: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it has the embedding."""
        return self.number == 0

    @property
    def is_last(self) -> bool:
        """Whether it has the head."""
        return self.number == self.count - 1


WHOLE = Stage()


class Elsewhere(torch.nn.Module):
    """Stands for a module of another stage: hands its input on, or `come` where that is set."""

    def __init__(self) -> None:
        super().__init__()
        self.come: torch.Tensor | None = None

    def forward(self, hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Return hidden states of the same shape, (1, T, hidden)."""
        return hidden if self.come is None else self.come


class StagedModel(torch.nn.Module):
    """A stage's forward: the logits on the last one, on others the hidden states that it sends."""

    def __init__(self, whole: Any, stage: Stage) -> None:
        super().__init__()
        self.whole, self._stage = whole, stage

    def forward(self, come: torch.Tensor | None, **arguments: Any) -> torch.Tensor:
        """Run this stage's layers.

        Args:
            come: hidden states (1, T, hidden) from the stage before; None on the first.
            arguments: of the whole model's forward.
        """
        base = self.whole.get_base_model() if hasattr(self.whole, "peft_config") else self.whole
        decoder = base.base_model
        before: Any = None
        if come is not None:
            layers = _layers(base)
            before = layers[stage_layers(len(layers), self._stage.count)[self._stage.number][0] - 1]
            before.come = come
            # Only its shape and type are looked at before the first layer of this stage.
            arguments["inputs_embeds"] = come.detach()
            del arguments["input_ids"]
        try:
            if self._stage.is_last:
                logits: torch.Tensor = self.whole(**arguments).logits
                return logits
            hidden: torch.Tensor = decoder(**arguments).last_hidden_state
            return hidden
        finally:
            if before is not None:
                before.come = None


def cut(model: PreTrainedModel, stage: Stage) -> None:
    """Take out of a model, in place, what other stages hold.

    A tied embedding stays on the first stage and, for the head, on the last.

    Raises:
        ValueError: the model has parts that belong to no stage.
    """
    decoder: Any = model.base_model
    embedding, head, layers = model.get_input_embeddings(), model.get_output_embeddings(), None
    for name, child in list(decoder.named_children()):
        if child is embedding:
            tied = bool(getattr(model.config, "tie_word_embeddings", False))
            if not (stage.is_first or (stage.is_last and tied)):
                setattr(decoder, name, Elsewhere())
        elif isinstance(child, torch.nn.ModuleList):
            layers = child
        elif "norm" in name and layers is not None:
            if not stage.is_last:
                setattr(decoder, name, Elsewhere())
        elif any(True for _ in child.parameters()):
            raise ValueError(f"{name} belongs to no stage")
    _cut_layers(model, stage)
    for name, child in list(model.named_children()):
        if child is head and not stage.is_last:
            setattr(model, name, Elsewhere())
        elif child not in (head, decoder) and any(True for _ in child.parameters()):
            raise ValueError(f"{name} belongs to no stage")
    if not stage.is_last:
        model.all_tied_weights_keys = {}


def _layers(model: Any) -> Any:
    """Return the list of a model's layers."""
    found = [c for c in model.base_model.children() if isinstance(c, torch.nn.ModuleList)]
    if len(found) != 1:
        raise ValueError(f"{type(model).__name__} has {len(found)} lists of layers")
    return found[0]


def _cut_layers(model: PreTrainedModel, stage: Stage) -> None:
    layers = _layers(model)
    own = stage_layers(len(layers), stage.count)[stage.number]
    for number in range(len(layers)):
        if number not in own:
            layers[number] = Elsewhere()


def class_of(kind: type[PreTrainedModel], stage: Stage) -> type[PreTrainedModel]:
    """Return a class whose models are cut when they are made, before their weights are read."""

    def make(self: PreTrainedModel, *args: Any, **options: Any) -> None:
        kind.__init__(self, *args, **options)
        cut(self, stage)

    return type(kind.__name__, (kind,), {"__init__": make, "__module__": kind.__module__})


def mark_copies(model: PreTrainedModel, stage: Stage) -> None:
    """Mark what the last stage holds of the first's: a tied embedding; see `Mesh.counts`."""
    if stage.is_last and not stage.is_first:
        for parameter in tied(model):
            parameter.ds_pipe_replicated = True  # type: ignore[attr-defined]


def tied(model: PreTrainedModel) -> Iterator[torch.nn.Parameter]:
    """Yield the embedding's weight where the head's is the same, as the config says."""
    if getattr(model.config, "tie_word_embeddings", False):
        yield from model.get_input_embeddings().parameters()


def can_cut(config: PreTrainedConfig) -> bool:
    """Whether a family's stages one after the other give what the whole model gives."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        try:
            return _alike(small_model(config))
        except Exception:  # a model that has other parts, or is called in another way
            return False


def _alike(model: Any) -> bool:
    ids = torch.arange(9)[None] % VOCABULARY
    wanted = model(ids, use_cache=False).logits
    found: torch.Tensor | None = None
    for number in range(2):
        part, stage = copy.deepcopy(model), Stage(number, 2)
        cut(part, stage)
        found = StagedModel(part, stage)(found, input_ids=ids, use_cache=False)
    return found is not None and torch.equal(found, wanted)
