"""The command line of `train/main.py` as a table: flag, reader, default, help."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from train.errors import ConfigError, did_you_mean


class Parser(argparse.ArgumentParser):
    """A parser that raises ConfigError where argparse would exit; no flag may be abbreviated."""

    def __init__(self, prog: str, description: str, where: str = "") -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self._where = where

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and exiting.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{self._where}{message}")


COLUMN_ROLES = (
    "messages", "prompt", "completion", "text", "instruction", "input", "output", "system",
    "history", "tools",
)  # fmt: skip
PIN_KEYS = (
    "zero", "micro_tokens", "recompute", "offload", "dp", "tp", "pp", "sp", "replicas", "hpz",
    "balance",
)  # fmt: skip


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return a reader of whole numbers from `low` to `high`."""

    def read(text: str) -> int:
        value = int(_number(text, int, "a whole number"))
        if value < low:
            raise ValueError(f"must be a whole number of at least {low}, but is {value} instead")
        if high is not None and value > high:
            raise ValueError(f"must be a whole number of at most {high}, but is {value} instead")
        return value

    return read


def real(low: float, high: float = math.inf, *, open_low: bool = False) -> Callable[[str], float]:
    """Return a reader of finite numbers from `low` (left out if `open_low`) to `high`."""

    def read(text: str) -> float:
        value = float(_number(text, float, "a number"))
        above = value > low if open_low else value >= low
        if not (math.isfinite(value) and above and value <= high):
            bounds = f"{'above' if open_low else 'at least'} {low:g}"
            bounds += "" if math.isinf(high) else f" and at most {high:g}"
            raise ValueError(f"must be a finite number {bounds}, but is {text} instead")
        return value

    return read


def _number(text: str, kind: Callable[[str], Any], noun: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"must be {noun}, but is '{text}' instead") from None


def read_columns(text: str) -> tuple[tuple[str, str], ...]:
    """Read `role=name,role=name`: which column is what.

    Raises:
        ValueError: a part is not of that form, or a role is unknown or stands twice.
    """
    pairs: dict[str, str] = {}
    for part in text.split(","):
        role, equals, name = (word.strip() for word in part.partition("="))
        if not (equals and name):
            raise ValueError(f"takes role=name,role=name, but has '{part}' instead")
        if role not in COLUMN_ROLES:
            near = did_you_mean(role, COLUMN_ROLES) or f"; the roles are {', '.join(COLUMN_ROLES)}"
            raise ValueError(f"does not know the role '{role}'{near}")
        if role in pairs or {"instruction": "prompt", "output": "completion"}.get(role) in pairs:
            raise ValueError(f"gives '{role}' twice: keep one")
        if name in pairs.values():
            raise ValueError(f"gives the column '{name}' two roles: it can have one")
        pairs[role] = name
    return tuple(pairs.items())


@dataclass(frozen=True)
class Argument:
    """One row of the command line: a flag, how it is read, its default and its help."""

    flag: str
    read: Callable[[str], Any] | None
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    alias: str | None = None

    @property
    def name(self) -> str:
        """The flag as a Python name."""
        return self.flag.removeprefix("--").replace("-", "_")


TRACKERS = (
    "tensorboard", "wandb", "mlflow", "trackio", "comet_ml", "aim", "clearml", "dvclive",
    "swanlab", "none",
)  # fmt: skip

# What other trainers call things (without dashes, in small letters), and what to write here.
_JOB = "--batch-size, which counts the samples of the whole job per optimizer step"
OTHER_NAMES = {
    **dict.fromkeys(("model", "model-name", "model-id", "model-path", "base-model"),
                    "--model-name-or-path"),
    **dict.fromkeys(("dataset", "dataset-name", "dataset-path", "datasets", "data", "data-path",
                     "train-file", "train-data"), "--dataset-name-or-path"),
    **dict.fromkeys(("eval-dataset", "eval-file", "eval-data-path", "test-datasets",
                     "validation-file", "val-data"), "--eval-dataset-name-or-path"),
    **dict.fromkeys(("interleave-probs", "mix-strategy", "dataset-weights"),
                    "--dataset-name-or-path a.jsonl*2,b.jsonl"),
    **dict.fromkeys(("dataset-config", "dataset-config-name", "dataset-train-split",
                     "dataset-split", "dataset-revision"),
                    "--dataset-name-or-path owner/name:subset:split@revision"),
    **dict.fromkeys(("max-samples", "max-train-samples"),
                    "--dataset-name-or-path a.jsonl*0.1, another tenth of it in each epoch"),
    **dict.fromkeys(("val-set-size", "val-size", "validation-split-percentage"),
                    "--eval-dataset-name-or-path, or nothing: one row in twenty is held out"),
    **dict.fromkeys(("dataset-prepared-path", "overwrite-cache", "preprocessing-num-workers",
                     "dataset-num-proc", "dataset-processes", "dataloader-num-workers"),
                    "nothing: rows are tokenized once, in a process for each core, and kept"),
    **dict.fromkeys(("chat-template-jinja", "chat-template-path", "template"),
                    "--chat-template FILE, or nothing: the tokenizer's own is used"),
    **dict.fromkeys(("field-instruction", "field-output", "field-messages", "dataset-text-field",
                     "text-column"), "--columns role=NAME"),
    **dict.fromkeys(("train-on-inputs", "train-on-prompt"), "--loss-on all"),
    **dict.fromkeys(("completion-only-loss", "assistant-only-loss"), "--loss-on completion"),
    **dict.fromkeys(("special-tokens", "resize-vocab", "resize-token-embeddings-to-32x"),
                    "nothing: the tokenizer's own are used, and the vocabulary does not grow"),
    "mask-history": "nothing: a turn with 'weight': 0 carries no loss",
    **dict.fromkeys(("tokenizer-name", "tokenizer-name-or-path", "tokenizer-path"), "--tokenizer"),
    **dict.fromkeys(("learning-rate", "peak-lr"), "--lr"),
    **dict.fromkeys(("lr-scheduler-type", "lr-scheduler", "scheduler"), "--lr-schedule"),
    **dict.fromkeys(("num-train-epochs", "num-epochs", "n-epochs"), "--epochs"),
    **dict.fromkeys(("num-steps", "total-steps", "max-iters", "iters", "steps"), "--max-steps"),
    **dict.fromkeys(("per-device-train-batch-size", "per-gpu-train-batch-size", "micro-batch-size",
                     "train-batch-size", "global-batch-size"), _JOB),
    "auto-find-batch-size": "nothing: the planner divides a batch so that it fits",
    "remove-unused-columns": "nothing: columns that are not used are named",
    "metric-for-best-model": "nothing: --early-stop goes by the loss of evaluations",
    **dict.fromkeys(("use-cpu", "no-cuda"), "nothing: without a GPU ranks are CPU processes"),
    **dict.fromkeys(("gradient-accumulation-steps", "grad-accum", "accumulate-grad-batches"),
                    f"only {_JOB}; the planner accumulates"),
    **dict.fromkeys(("max-seq-length", "max-seq-len", "max-length", "seq-length", "seq-len",
                     "sequence-len", "cutoff-len", "model-max-length", "context-length"),
                    "--block-size"),
    **dict.fromkeys(("deepspeed", "ds-json", "deepspeed-config-file"), "--ds-config"),
    **dict.fromkeys(("zero-stage", "zero"), "--pin zero=STAGE"),
    **dict.fromkeys(("gradient-checkpointing", "activation-checkpointing"),
                    "--pin recompute=full, or nothing: the planner decides"),
    "bf16": "--precision bf16", "fp16": "--precision fp16",
    **dict.fromkeys(("torch-dtype", "dtype", "mixed-precision"), "--precision"),
    "tf32": "nothing: products are in the type of --precision",
    **dict.fromkeys(("packing", "sample-packing", "eval-packing", "eval-sample-packing",
                     "neat-packing", "padding-free", "pad-to-sequence-len", "group-by-length",
                     "flash-attn", "flash-attention", "xformers-attention", "sdp-attention",
                     "attn-implementation"),
                    "nothing: samples are packed wherever the model's attention allows it"),
    **dict.fromkeys(("use-liger-kernel", "enable-liger-kernel", "use-liger"),
                    "nothing: Liger's kernels are used where they are installed and fit"),
    **dict.fromkeys(("fsdp", "fsdp-config", "use-fsdp"),
                    "nothing: ZeRO divides the states, at the planner's stage or --pin zero=STAGE"),
    **dict.fromkeys(("use-peft", "lora", "peft", "adapter", "finetuning-type"), "--use-lora"),
    **dict.fromkeys(("lora-rank", "rank"), "--lora-r"),
    **dict.fromkeys(("lora-target", "lora-target-modules", "lora-target-linear"),
                    "nothing: all linear layers get an adapter"),
    **dict.fromkeys(("stage", "rl", "pref-loss"), "--objective sft or --objective dpo"),
    **dict.fromkeys(("beta", "pref-beta", "dpo-beta"), "nothing: beta is 0.1"),
    **dict.fromkeys(("load-in-4bit", "qlora", "bnb-4bit-quant-type", "use-4bit", "quantization-bit",
                     "load-in-8bit"), "--use-lora --quantize nf4"),
    **dict.fromkeys(("bnb-4bit-compute-dtype", "bnb-4bit-use-double-quant",
                     "use-bnb-nested-quant"),
                    "nothing: --quantize nf4 computes in --precision, its scales in 8 bits"),
    **dict.fromkeys(("warmup", "num-warmup-steps", "lr-warmup-steps"), "--warmup-steps"),
    **dict.fromkeys(("gradient-clipping", "clip-grad", "grad-clip"), "--max-grad-norm"),
    **dict.fromkeys(("logging-steps", "log-every", "logging-interval"), "--log-interval"),
    "logging-strategy": "--log-interval", "plot-loss": "anyrank report RUN",
    **dict.fromkeys(("do-train", "do-eval"), "nothing: a run trains, and evaluates at its end"),
    **dict.fromkeys(("per-device-eval-batch-size", "eval-batch-size"),
                    "nothing: evaluation is packed as training is"),
    **dict.fromkeys(("eval-steps", "eval-interval", "eval-every", "eval-strategy",
                     "evaluation-strategy", "evals-per-epoch"), "--eval-step"),
    **dict.fromkeys(("save-steps", "save-interval", "checkpoint-every", "save-strategy",
                     "saves-per-epoch"), "--save-step"),
    **dict.fromkeys(("save-total-limit", "keep-last"), "--keep"),
    **dict.fromkeys(("early-stopping-patience", "early-stopping", "patience",
                     "load-best-model-at-end"), "--early-stop N with --eval-step M"),
    **dict.fromkeys(("save-model-only", "no-save-optimizer"), "--save-only-model"),
    **dict.fromkeys(("output-dir", "output", "out-dir"), "--save-dir or --run-dir"),
    "overwrite-output-dir": "--resume never",
    "run-name": "--run-dir: trackers show the folder's name",
    "wandb-name": "--run-dir: W&B shows the folder's name",
    **dict.fromkeys(("push-to-hub", "hub-model-id"),
                    "nothing: the command that uploads the model is shown at a run's end"),
    **dict.fromkeys(("ddp-timeout", "ddp-find-unused-parameters"),
                    "nothing: what hangs is found and started again"),
    **dict.fromkeys(("resume-from-checkpoint", "resume-from", "load-checkpoint"),
                    "--run-dir RUN: a run goes on from its newest checkpoint"),
    **dict.fromkeys(("num-processes", "nproc-per-node", "num-gpus", "gpus", "nnodes", "num-nodes",
                     "hostfile"), "./launch.sh N [--hostfile FILE] instead"),
    **dict.fromkeys(("optim", "optimizer", "adam-beta1", "adam-beta2", "adam-epsilon"),
                    "nothing: the optimizer is AdamW with betas 0.9 and 0.999 and eps 1e-8"),
    **dict.fromkeys(("wandb-project", "wandb", "tensorboard"), "--report-to wandb|tensorboard"),
}  # fmt: skip

ARGUMENTS = (
    Argument("--model-name-or-path", str, None, "a Hugging Face folder or hub name"),
    Argument("--tokenizer", str, None, "a Hugging Face folder or name, or a SentencePiece .model"),
    Argument("--chat-template", str, None, "for the tokenizer's own: a file, chatml, or none"),
    Argument("--dataset-name-or-path", str, None, "a hub name, URL, folder or file; a*2,b for two"),
    Argument("--eval-dataset-name-or-path", str, None, "rows to evaluate on; default: held out"),
    Argument("--columns", read_columns, None, "what is what: prompt=NAME,completion=NAME"),
    Argument("--objective", str, "sft", "learn answers, or to prefer chosen ones", ("sft", "dpo")),
    Argument("--loss-on", str, None, "default: by the columns found", ("all", "completion")),
    Argument("--skip-bad-rows", None, False, "leave malformed rows out and count them"),
    Argument("--batch-size", whole(1), 256, "samples of the whole job per optimizer step"),
    Argument("--block-size", whole(2), 1024, "longest sample in tokens; the rest is cut"),
    Argument("--epochs", whole(1), 3, "passes over the dataset"),
    Argument("--max-steps", whole(1), None, "number of optimizer steps; instead of --epochs"),
    Argument("--lr", real(0, open_low=True), 2e-6, "learning rate; --use-lora has 2e-4"),
    Argument("--lr-schedule", str, "constant", "after warm-up", ("constant", "cosine", "linear")),
    Argument("--warmup-steps", whole(0), 0, "steps over which the learning rate rises linearly"),
    Argument("--warmup-ratio", real(0, 1), None, "the same, as a share of all steps"),
    Argument("--weight-decay", real(0), 0.0, "AdamW's decay, on matrices only"),
    Argument("--max-grad-norm", real(0), 1.0, "clip the global gradient norm; 0 does not clip"),
    Argument("--seed", whole(0, 2**63 - 1), 0, "of the order, the adapter's first values, dropout"),
    Argument("--precision", str, "bf16", "16 bits keep an fp32 master", ("bf16", "fp16", "fp32")),
    Argument("--use-lora", None, False, "train a low-rank adapter, the model frozen"),
    Argument("--lora-r", whole(1), 16, "rank of the adapter"),
    Argument("--lora-alpha", whole(1), 32, "scale of the adapter times its rank"),
    Argument("--lora-dropout", real(0, 0.99), 0.0, "dropout before the adapter"),
    Argument("--quantize", str, None, "keep the frozen model in 4 bits (QLoRA)", ("nf4",)),
    Argument("--log-interval", whole(1), 1, "steps between console lines"),
    Argument("--eval-step", whole(0), 0, "steps between evaluations; 0: at the end only"),
    Argument("--save-step", whole(0), 0, "steps between checkpoints; 0: none before the end"),
    Argument("--keep", whole(1), 2, "how many checkpoints are kept"),
    Argument("--early-stop", whole(1), None, "end after so many evaluations without a better one"),
    Argument("--save-only-model", None, False, "at the end no checkpoint, 12 bytes a parameter"),
    Argument("--save-dir", str, None, "the final Hugging Face folder; default: <run-dir>/model"),
    Argument("--run-dir", str, None, "the run's folder; default: runs/<time>-<model>"),
    Argument("--resume", str, "auto", "from the run's checkpoints", ("auto", "must", "never")),
    Argument("--ds-config", str, "ds_configs/zero3.json", "what it sets is pinned",
             alias="--deepspeed-config"),
    Argument("--pin", str, None, "fix a part of the plan: " + " ".join(PIN_KEYS)),
    Argument("--config", str, None, "arguments by name, in YAML or JSON; what is typed wins"),
    Argument("--report-to", str, "none", "curves, too, to", TRACKERS),
    Argument("--trust-remote-code", None, False, "run code that the model's folder brings along"),
    Argument("--no-regrow", None, False, "hosts that were lost and are back are not taken back"),
    Argument("--dry-run", None, False, "plan, print the plan and stop"),
    Argument("--local-rank", int, 0, argparse.SUPPRESS),
)  # fmt: skip

# The titles of --help's groups, by the first argument of each.
GROUPS = {
    "--model-name-or-path": "model and data",
    "--batch-size": "optimizer steps",
    "--use-lora": "adapter",
    "--log-interval": "output",
    "--ds-config": "plan",
    "--config": "the rest",
}

# With --use-lora, but for pairs of answers: few values, trained from nothing, take larger steps.
ADAPTER = {"lr": 2e-4}

# With neither a model nor a dataset named, the embedded preset is trained with these.
PRESET = {
    "batch_size": 16, "block_size": 512, "max_steps": 100, "lr": 2e-3,
    "lr_schedule": "cosine", "warmup_steps": 30, "precision": "fp32",
    "ds_config": "ds_configs/auto.json",
}  # fmt: skip
