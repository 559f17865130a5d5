"""Save an engine that no run drives: a checkpoint of it, exported as at the end of a run."""

from __future__ import annotations

from pathlib import Path

from train.checkpoint.folder import complete
from train.checkpoint.identity import RunFingerprint
from train.config import ModelConfig
from train.engine import zero
from train.engine.huggingface import export_adapter, export_model, open_exporter
from train.engine.saver import Saver
from train.engine.step import Engine


def save_model(engine: Engine, base: Path, config: ModelConfig, folder: Path) -> None:
    """Write the model of one process as a Hugging Face folder, or its adapter as peft's."""
    run = folder.with_name(folder.name + "-run")
    attempt = run / "attempts" / "0001"
    attempt.mkdir(parents=True)
    folder.mkdir()
    saver = Saver(engine, run, attempt, RunFingerprint({}, {}), keep=1)
    saver.save(zero.step_count(engine) or 0)
    saver.wait()
    exporter = open_exporter(complete(run)[0], base, config)
    if config.lora is None:
        export_model(exporter, folder)
    else:
        export_adapter(exporter, folder, config.lora, seed=0)
