"""The end of a run: the final model saved, what came of it told, an answer of it shown."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from train.checkpoint import folder as checkpoints
from train.checkpoint.index import read_index
from train.config import OutputConfig
from train.data.feed import Split
from train.data.mix import Dataset
from train.data.preview import preview
from train.data.stops import ends
from train.data.tokenizers import load_tokenizer
from train.engine.export import save_final
from train.engine.restore import restore
from train.engine.sample import answer
from train.engine.step import Engine
from train.errors import FaultError
from train.loop import Outputs, best_step, counted
from train.output.card import beside, next_commands
from train.output.console import Console
from train.output.metrics import of_rows, read_metrics
from train.output.record import evaluations
from train.run.inputs import RunInputs

SAMPLES, LINES = 32, 8  # held-out samples that are looked at, and lines of an answer


def save(engine: Engine, inputs: RunInputs, data: Dataset, out: Outputs) -> int:
    """Write the final Hugging Face folder with its tokenizer; return after which step it is."""
    folder, config = save_folder(inputs, out), inputs.config
    out.console.stage(7, f"Saving the model to {folder}")
    rows = data.validation.fingerprint
    checkpoint = engine.gang.from_main(lambda: _final_checkpoint(config.output, rows, out))
    step = checkpoints.step_of(checkpoint)
    files = {} if out.folder is None else beside(out.path, out.folder.attempt, step)
    told = save_final(engine.gang, checkpoint, config.model, config.data.seed, folder, files)
    if told:
        out.console.say(told)
    if config.output.early_stop and checkpoint.parent.parent == out.path:
        index = engine.gang.from_main(lambda: read_index(checkpoint))
        restore(engine, checkpoint, index)  # for what the model is asked at the end
    if out.folder is not None and config.output.save_only_model:
        shutil.rmtree(checkpoints.model_only(out.path), ignore_errors=True)
        kept = [path.name for path in checkpoints.complete(out.path)]
        out.console.say(
            "--save-only-model: the run cannot go on from its end; its checkpoints are "
            f"{', '.join(kept) or 'none'}"
        )
    return step


def _final_checkpoint(output: OutputConfig, rows: str, out: Outputs) -> Path:
    """Return what the final model is written from: the last step's, or the best evaluation's.

    Args:
        rows: the fingerprint of what is evaluated on.
    """
    found = checkpoints.complete(checkpoints.model_only(out.path)) or checkpoints.complete(out.path)
    if not output.early_stop:
        return found[0]
    kept = {checkpoints.step_of(path): path for path in found}
    evals = counted(tuple(evaluations(read_metrics(out.path / "metrics.jsonl"), rows)), kept)
    step = best_step(evals)
    if step is None:
        raise FaultError(
            f"no evaluation of {out.path} has a checkpoint, so none is the best: write one of "
            f"those of the steps {', '.join(map(str, kept))} by anyrank export"
        )
    loss = min(one.eval_loss for one in evals)
    out.console.say(
        f"--early-stop: the model is that after step {step}, whose evaluation was the best of "
        f"{len(evals)} (loss {loss:.6f})"
    )
    return kept[step]


def finish(engine: Engine, inputs: RunInputs, data: Dataset, out: Outputs, step: int) -> None:
    """Say what came of the run, let the model answer, name what to do with it; write DONE.

    Args:
        step: after which step the model is that was saved.
    """
    for line in engine.gang.from_main(lambda: _losses(out.path, data.validation.fingerprint, step)):
        out.console.say(line)
    _show_answer(engine, inputs, data, out.console)
    if out.folder is not None:
        folder = save_folder(inputs, out)
        kept = bool(checkpoints.complete(out.path))
        model, made = inputs.config.model, data.chat_template is not None
        for line in next_commands(out.path, folder, model, kept=kept, made=made):
            out.console.say(line, whole=True)  # to be copied
    out.tracker.close()
    if out.folder is not None:
        out.folder.finish()
    out.console.stage(8, "Done")
    engine.gang.barrier()
    gc.unfreeze()  # or libraries' cycles outlive the process's end, and some complain of that


def _losses(run: Path, rows: str, step: int) -> tuple[str, ...]:
    """Compare the loss on held-out `rows` before training with that of the saved model."""
    evals = of_rows(read_metrics(run / "metrics.jsonl").evals, rows)
    if not evals:
        return ()
    first, last = evals[0], next((one for one in evals if one["step"] == step), evals[-1])
    before = f"{first['eval_loss']:.4f} before training" if first["step"] == 0 else ""
    later = f"{last['eval_loss']:.4f} after step {last['step']}"
    return (f"Loss on held-out samples: {', '.join(filter(None, (before, later)))}",)


def _show_answer(engine: Engine, inputs: RunInputs, data: Dataset, console: Console) -> None:
    """Print what the model makes of a sample that is held out, and what stands there."""
    tokenizer = engine.gang.on_main(lambda: load_tokenizer(inputs.config.model))
    prompt, rest = _prompt(data.validation)
    stops = engine.gang.from_main(lambda: ends(tokenizer) if tokenizer else [])
    found = answer(engine, prompt, stops)
    if tokenizer is None:
        return
    console.say("A held-out sample, and what the model answers to it:")
    generated = (tokenizer.show(found), True)
    for line in preview([(tokenizer.show(prompt.tolist()), False)], colour=console.colour):
        console.say(f"    {line}")
    console.say("    >>> generated:")
    for line in preview([generated], colour=console.colour)[:LINES]:
        console.say(f"    {line}")
    console.say("    >>> in the data:")
    for line in preview([(tokenizer.show(rest.tolist()), False)], colour=console.colour)[:LINES]:
        console.say(f"    {line}")


def _prompt(split: Split) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return a held-out sample up to its first answer, and the rest: the shortest of the first.

    Of a text that carries loss throughout a third is given.
    """
    found = []
    for number in range(min(SAMPLES, len(split.lengths))):
        tokens, mask = split.sample(number)
        start = int(mask.argmax())
        found.append((start if start > 1 else max(1, len(tokens) // 3), number))
    start, number = min(found)
    tokens, _ = split.sample(number)
    return tokens[:start], tokens[start:]


def save_folder(inputs: RunInputs, out: Outputs) -> Path:
    """Return where the final model goes."""
    return Path(inputs.config.output.save_dir or out.path / "model")
