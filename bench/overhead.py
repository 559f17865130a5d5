"""The loop's own overhead: a step of `train.loop` against its bare forward, backward and step.

    python bench/overhead.py [--steps N]

One run of the real loop, with its run folder, its prefetching and its console. After each of its
steps the same micro-batches are stepped again, bare: tensors ready, the model's forward, torch's
own cross-entropy, DeepSpeed's backward and step, nothing else. A step of the loop is timed from one
start to the next, so that fetching, recording and printing count. Budget: 3 %. For comparison the
same steps are also taken by plain torch, without DeepSpeed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from bench import record
from bench.rig import Rig, clock, join, rig, settle, train
from train.data.batch import MicroBatch
from train.engine.inputs import Inputs, packed_inputs
from train.engine.start import parameter_groups
from train.engine.step import Engine, StepResult
from train.loop import Outputs
from train.output.console import Console
from train.output.record import open_run_folder
from train.output.trackers import NoTracker

BUDGET = 0.03
WORDS = "--pin micro_tokens=4096 recompute=none zero=0 offload=none "
WORDS += "--batch-size 16 --lr 1e-5 --max-steps"


def logits(module: Any, inputs: Inputs) -> torch.Tensor:
    found = module(**inputs.arguments, logits_to_keep=inputs.where, use_cache=False).logits
    return found.reshape(-1, found.shape[-1])  # type: ignore[no-any-return]


def bare_deepspeed(engine: Engine, ready: Sequence[Inputs], loss_tokens: int) -> None:
    wrapped = engine.deepspeed
    for number, inputs in enumerate(ready):
        wrapped.set_gradient_accumulation_boundary(number == len(ready) - 1)
        loss = cross_entropy(logits(wrapped, inputs), inputs.targets, reduction="sum")
        wrapped.backward(loss / loss_tokens, scale_wrt_gas=False)
    parameters = [p for p in engine.model.module.parameters() if p.grad is not None]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    wrapped.step()


@dataclass(frozen=True)
class Plain:
    """A copy of the model under torch alone."""

    module: Any
    optimizer: torch.optim.Optimizer

    def step(self, ready: Sequence[Inputs], loss_tokens: int) -> None:
        for inputs in ready:
            loss = cross_entropy(logits(self.module, inputs), inputs.targets, reduction="sum")
            (loss / loss_tokens).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


@dataclass(frozen=True)
class Observed:
    """The engine that the loop is given: it steps, then lets the bare ways step, and notes times.

    Every other step the bare ways go first, since whoever goes second finds warm caches. `enters`
    and `leaves` are when the loop asked for a step and when it got it back.
    """

    engine: Engine
    bare: dict[str, Callable[[Sequence[Inputs], int], None]]
    enters: list[float] = field(default_factory=list)
    leaves: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def step(
        self, step: int, micros: Sequence[MicroBatch], loss_tokens: int, lr: float, *, stop: bool
    ) -> StepResult:
        self.enters.append(time.perf_counter())
        if step % 2:
            self._bare(micros, loss_tokens)
        settle()
        began = time.perf_counter()
        found = self.engine.step(step, micros, loss_tokens, lr, stop=stop)
        settle()
        self.steps.append(time.perf_counter() - began)
        if step % 2 == 0:
            self._bare(micros, loss_tokens)
        self.leaves.append(time.perf_counter())
        return found

    def _bare(self, micros: Sequence[MicroBatch], loss_tokens: int) -> None:
        ready = [packed_inputs(micro, self.engine.gang.device) for micro in micros]
        for name, act in self.bare.items():
            took = clock(lambda act=act: act(ready, loss_tokens))  # type: ignore[misc]
            self.seconds.setdefault(name, []).append(took)

    def evaluate(self, batches: Iterable[Sequence[MicroBatch]]) -> tuple[float, int]:
        return 0.0, 1

    def agree(self, *, wish: bool) -> bool:
        return self.engine.agree(wish=wish)

    def peak_bytes(self) -> int:
        return self.engine.peak_bytes()

    def whole(self) -> list[float]:
        """Seconds of each step of the loop: in the engine, and from it to the next request."""
        asked = zip(self.leaves, self.enters[1:], strict=False)
        return [a + after - before for a, (before, after) in zip(self.steps, asked, strict=False)]


def observe(run: Rig, folder: Path) -> Observed:
    """Run the loop with the bare ways beside it."""
    engine = run.engine()
    module = copy.deepcopy(engine.model.module).train()
    plain = Plain(module, torch.optim.AdamW(parameter_groups(module, 0.0), lr=1e-5))
    observed = Observed(engine, {
        "bare DeepSpeed": lambda ready, tokens: bare_deepspeed(engine, ready, tokens),
        "plain torch": plain.step,
    })  # fmt: skip
    opened = open_run_folder(folder)
    console = Console(True, opened.log)
    train(observed, run.job(engine), Outputs(console, opened, NoTracker(), folder))
    return observed


def main() -> int:
    parser = argparse.ArgumentParser(description="the loop against a bare step")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps")
    steps = parser.parse_args().steps
    gang = join()
    with tempfile.TemporaryDirectory() as folder:
        run = rig(gang, [*WORDS.split(), str(steps + 3)])
        observed = observe(run, Path(folder))
    whole = observed.whole()[2:]
    rows = []
    for name, seconds in observed.seconds.items():
        pairs = list(zip(whole, seconds[2:], strict=False))
        rows.append({
            "against": name, "loop_seconds": median(whole), "seconds": median(seconds[2:]),
            "overhead": median(a / b for a, b in pairs) - 1,
        })  # fmt: skip
    outside = median(a - b for a, b in zip(whole, observed.steps[2:], strict=False))
    share = outside / median(whole)
    met = rows[0]["overhead"] <= BUDGET
    print(record.table(rows))
    print(f"outside forward, backward and step: {share:.2%}; allowed overhead {BUDGET:.0%}")
    summary = {"overhead": rows[0]["overhead"], "outside": share, "allowed": BUDGET, "met": met}
    print(f"written to {record.write('overhead', rows, summary)}")
    gang.close()
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
