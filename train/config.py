"""The nouns of a run, frozen; and the one way from a command line to them.

Nothing here reads the environment, a file or the clock: `parse_args` is a function of its
arguments, so every rank that is given the same command line holds the same `RunConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

from train.arguments import ADAPTER, ARGUMENTS, PRESET
from train.command_line import parse_pins, read_words
from train.errors import ConfigError
from train.names import DatasetName, read_names

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Which process this is, and of how many."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    local_size: int = 1
    node: int = 0

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> World:
        """Read the launcher's variables; with none of them set this is the only process."""
        if "RANK" not in env and env.get("WORLD_SIZE", "1") == "1":
            return cls()
        try:
            world = cls(
                rank=int(env["RANK"]),
                local_rank=int(env["LOCAL_RANK"]),
                size=int(env["WORLD_SIZE"]),
                local_size=int(env.get("LOCAL_SIZE") or env.get("LOCAL_WORLD_SIZE") or 1),
                node=int(env.get("CROSS_RANK") or env.get("GROUP_RANK") or 0),
            )
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"the launcher's variables are incomplete ({error}): RANK, LOCAL_RANK and "
                "WORLD_SIZE must be whole numbers; start the run with ./launch.sh or deepspeed"
            ) from error
        if not 0 <= world.rank < world.size:
            raise ConfigError(f"RANK must lie in 0..{world.size - 1}, but is {world.rank} instead")
        return world

    @property
    def is_main(self) -> bool:
        """Whether this process speaks for the job."""
        return self.rank == 0


@dataclass(frozen=True)
class LoraConfig:
    """A low-rank adapter: rank, scale numerator and dropout probability."""

    r: int
    alpha: int
    dropout: float


@dataclass(frozen=True)
class ModelConfig:
    """Which model, in which precision, trained whole or through an adapter (`lora`).

    `chat_template`: the file of one to use instead of the tokenizer's own, or `chatml`, or `none`.
    `quantize`: the 4-bit type of the frozen model under an adapter.
    `hub`: the name that a hub knows the model by, where it was not given as a folder.
    """

    name_or_path: str | None
    tokenizer: str | None
    precision: str
    lora: LoraConfig | None
    trust_remote_code: bool
    chat_template: str | None = None
    hub: str | None = None
    quantize: str | None = None


@dataclass(frozen=True)
class DataConfig:
    """Which samples, how long, and how many per optimizer step of the whole job.

    `date`: the day, as `2026-01-31`, that a chat template is told; a run that goes on keeps it.
    `columns`: pairs of a role and the column that has it; empty: by the columns' names.
    """

    name_or_path: str | None
    loss_on: str | None
    skip_bad_rows: bool
    batch_size: int
    block_size: int
    seed: int
    columns: tuple[tuple[str, str], ...] = ()
    date: str | None = None
    objective: str = "sft"
    eval_name_or_path: str | None = None

    @property
    def names(self) -> tuple[DatasetName, ...]:
        """The datasets to train on; none where none is named."""
        return read_names(self.name_or_path) if self.name_or_path else ()

    @property
    def eval_names(self) -> tuple[DatasetName, ...]:
        """The datasets to evaluate on, where they are other than what is held out."""
        named = self.eval_name_or_path
        return read_names(named, "--eval-dataset-name-or-path") if named else ()

    @property
    def several(self) -> bool:
        """Whether more than one dataset is named: `columns` are then of those that have them."""
        return len(self.names) + len(self.eval_names) > 1


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW's numbers; betas 0.9 and 0.999 and eps 1e-8 are fixed.

    `warmup_ratio`: the warm-up as a share of all steps, instead of `warmup_steps`.
    """

    lr: float
    lr_schedule: str
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    warmup_ratio: float | None = None


@dataclass(frozen=True)
class OutputConfig:
    """Where results go and how often, in optimizer steps; 0 switches a periodic act off.

    `early_stop`: evaluations without a better one after which the run ends.
    `save_only_model`: the last step leaves the model, and no checkpoint to go on from.
    """

    run_dir: str | None
    save_dir: str | None
    resume: str
    log_interval: int
    eval_step: int
    save_step: int
    keep: int
    report_to: str
    early_stop: int | None = None
    save_only_model: bool = False


@dataclass(frozen=True)
class RunConfig:
    """One run, whole."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    output: OutputConfig
    epochs: int
    max_steps: int | None
    ds_config: str
    pins: Mapping[str, str]
    dry_run: bool
    no_regrow: bool = False

    @property
    def preset(self) -> bool:
        """Whether neither a model nor a dataset was named, so that the embedded preset is run."""
        return self.model.name_or_path is None


def parse_args(argv: Sequence[str]) -> RunConfig:
    """Turn a command line into a run.

    Raises:
        ConfigError: an unknown flag, a missing or malformed value, or one that contradicts another.
    """
    given = read_words(argv)
    named = [given.get(name) is not None for name in ("model_name_or_path", "dataset_name_or_path")]
    if any(named) and not all(named):
        missing = "--dataset-name-or-path" if named[0] else "--model-name-or-path"
        raise ConfigError(
            f"{missing} is missing: name both a model and a dataset, or neither to train "
            "the embedded preset"
        )
    if {"warmup_steps", "warmup_ratio"} <= given.keys():
        raise ConfigError("--warmup-steps and --warmup-ratio say the same twice: keep one")
    if given.get("eval_dataset_name_or_path") and not all(named):
        raise ConfigError(
            "--eval-dataset-name-or-path evaluates a model that is trained on other data: name "
            "them by --model-name-or-path and --dataset-name-or-path"
        )
    if given.get("early_stop") and not given.get("eval_step"):
        raise ConfigError(
            "--early-stop counts evaluations, but --eval-step is 0: give the steps between them"
        )
    if given.get("quantize") and not given.get("use_lora"):
        raise ConfigError(
            f"--quantize {given['quantize']} keeps the model frozen in 4 bits, which nothing can "
            "train: give --use-lora as well, or leave it out"
        )
    alone = next((name for name in ("lora_r", "lora_alpha", "lora_dropout") if name in given), None)
    if alone and not given.get("use_lora"):
        raise ConfigError(
            f"--{alone.replace('_', '-')} is of an adapter, but without --use-lora the whole model "
            "is trained: give --use-lora as well, or leave it out"
        )
    if given.get("objective") == "dpo":
        _refuse_beside_dpo(given, named=all(named))
    preset = {} if all(named) else dict(PRESET)
    if "epochs" in given:
        preset.pop("max_steps", None)
    adapter = ADAPTER if given.get("use_lora") and given.get("objective") != "dpo" else {}
    values = {row.name: row.default for row in ARGUMENTS} | adapter | preset | given
    return _assemble(values)


def _refuse_beside_dpo(given: Mapping[str, Any], *, named: bool) -> None:
    """Refuse what pairs of answers do not go with.

    Raises:
        ConfigError: it names the argument.
    """
    if not named:
        raise ConfigError(
            "--objective dpo learns from pairs of answers: name a model and such data"
        )
    for flag in ("columns", "loss_on"):
        if given.get(flag):
            raise ConfigError(
                f"--{flag.replace('_', '-')} does not go with --objective dpo, whose rows are "
                "prompt, chosen and rejected, with loss on both answers: leave it out"
            )


def _assemble(values: Mapping[str, Any]) -> RunConfig:
    def pick(kind: type[T], **renamed: Any) -> T:
        names = [f.name for f in fields(cast(Any, kind)) if f.name not in renamed]
        return kind(**{name: values[name] for name in names}, **renamed)

    lora = LoraConfig(values["lora_r"], values["lora_alpha"], values["lora_dropout"])
    return pick(
        RunConfig,
        model=pick(
            ModelConfig,
            name_or_path=values["model_name_or_path"],
            lora=lora if values["use_lora"] else None,
            hub=None,
        ),
        data=pick(
            DataConfig,
            name_or_path=values["dataset_name_or_path"],
            eval_name_or_path=values["eval_dataset_name_or_path"],
            columns=values["columns"] or (),
            date=None,
        ),
        optimizer=pick(OptimizerConfig),
        output=pick(OutputConfig),
        pins=parse_pins(values["pin"] or ()),
    )
