import re
from pathlib import Path

import pytest

from train.arguments import ARGUMENTS, GROUPS, OTHER_NAMES, PRESET
from train.command_line import build_parser
from train.config import LoraConfig, World, parse_args
from train.errors import ConfigError, PlanError
from train.planning.dsconfig import read_ds_config
from train.planning.pins import merge_pins, zero3_left_out

ROOT = Path(__file__).resolve().parents[1]
NAMED = ["--model-name-or-path", "m", "--dataset-name-or-path", "d.jsonl"]


def test_the_defaults_are_those_of_the_original_script():
    config = parse_args(NAMED)
    assert (config.data.batch_size, config.data.block_size, config.epochs) == (256, 1024, 3)
    assert (config.optimizer.lr, config.model.precision) == (2e-6, "bf16")
    assert config.model.lora is None
    assert config.ds_config == "ds_configs/zero3.json"


def test_an_adapter_has_a_rate_of_its_own():
    assert parse_args([*NAMED, "--use-lora"]).optimizer.lr == 2e-4
    assert parse_args([*NAMED, "--use-lora", "--lr", "2e-6"]).optimizer.lr == 2e-6
    assert parse_args(["--use-lora"]).optimizer.lr == PRESET["lr"]
    assert parse_args([*NAMED, "--use-lora", "--objective", "dpo"]).optimizer.lr == 2e-6


def test_bad_rows_of_pairs_may_be_left_out_as_those_of_others():
    """The advice of every bad row named --skip-bad-rows, which pairs refused."""
    pairs = [*NAMED, "--objective", "dpo"]
    assert parse_args([*pairs, "--skip-bad-rows"]).data.skip_bad_rows
    with pytest.raises(ConfigError, match="--loss-on does not go with --objective dpo"):
        parse_args([*pairs, "--loss-on", "all"])


def test_with_nothing_named_the_preset_brings_its_own_numbers_and_flags_still_win():
    config = parse_args(["--batch-size", "8"])
    assert config.preset
    assert config.data.batch_size == 8
    assert config.max_steps == PRESET["max_steps"]
    by_epochs = parse_args(["--epochs", "1"])
    assert (by_epochs.epochs, by_epochs.max_steps) == (1, None)


def test_underscores_equals_signs_and_the_launchers_own_flag_are_accepted():
    config = parse_args(["--local_rank=3", "--model_name_or_path=m", *NAMED[2:], "--use_lora"])
    assert config.model.name_or_path == "m"
    assert config.model.lora == LoraConfig(r=16, alpha=32, dropout=0.0)


def test_the_ds_config_has_deepspeeds_name_as_well():
    assert parse_args([*NAMED, "--deepspeed_config", "x.json"]).ds_config == "x.json"


def test_pins_gather_over_words_and_flags():
    config = parse_args([*NAMED, "--pin", "zero=2", "micro_tokens=4096", "--pin", "recompute=full"])
    assert config.pins == {"zero": "2", "micro_tokens": "4096", "recompute": "full"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--batch-size", "0"], "--batch-size must be a whole number of at least 1, but is 0"),
        (["--batch-size", "many"], "--batch-size must be a whole number, but is 'many'"),
        (["--lr", "nan"], "--lr must be a finite number above 0, but is nan"),
        (["--lora-dropout", "1"], "at most 0.99, but is 1 instead"),
        (["--lora-r", "8"], "--lora-r is of an adapter, but without --use-lora the whole model is"),
        (["--lora-dropout", "0"], "--lora-dropout is of an adapter, but without --use-lora"),
        (["--precision", "fp61"], "one of bf16, fp16, fp32, but is 'fp61' instead; did you mean"),
        (["--batchsize", "3"], "unknown argument '--batchsize'; did you mean '--batch-size'?"),
        (["--block-size"], "expected one argument"),
        (["extra"], "unknown word 'extra'"),
        (["--run-dir", ""], "--run-dir must not be empty"),
        (["--warmup-steps", "3", "--warmup-ratio", "0.1"], "say the same twice: keep one"),
        (["--pin", "zero"], "--pin takes key=value, but is 'zero'"),
        (["--pin", "zeor=2"], "--pin does not know 'zeor'; did you mean 'zero'?"),
        (["--pin", "zero=2", "zero=3"], "twice, as 2 and as 3"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_flag(words, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)) as caught:
        parse_args([*NAMED, *words])
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_other_trainers_names_are_answered_with_the_true_ones_all_at_once():
    words = "--learning_rate 1e-4 --bf16 --per_device_train_batch_size=4 --foo -1 bar"
    with pytest.raises(ConfigError) as caught:
        parse_args([*NAMED, *words.split()])
    assert str(caught.value).split("; ") == [
        "unknown argument '--learning-rate': here it is --lr",
        "unknown argument '--bf16': here it is --precision bf16",
        "unknown argument '--per-device-train-batch-size': here it is --batch-size, which counts "
        "the samples of the whole job per optimizer step",
        "unknown argument '--foo'",
        "see --help",
        "unknown word 'bar'",
        "see --help",
    ]
    assert not set(OTHER_NAMES) & {row.name.replace("_", "-") for row in ARGUMENTS}
    assert {row.flag for row in ARGUMENTS} >= set(
        re.findall(r"--[a-z-]+", " ".join(OTHER_NAMES.values()))
    ) - {"--hostfile"}


def test_the_help_has_groups_and_each_begins_with_an_argument():
    shown = build_parser().format_help()
    assert all(f"\n{title}:" in shown for title in GROUPS.values())
    assert GROUPS.keys() <= {row.flag for row in ARGUMENTS}


@pytest.mark.parametrize("half", [NAMED[:2], NAMED[2:]])
def test_a_model_without_a_dataset_and_the_reverse_are_refused(half):
    with pytest.raises(ConfigError, match="is missing: name both"):
        parse_args(half)


def test_columns_are_pairs_of_a_role_and_a_name():
    config = parse_args([*NAMED, "--columns", "prompt=Frage, completion=Antwort = kurz"])
    assert config.data.columns == (("prompt", "Frage"), ("completion", "Antwort = kurz"))
    assert parse_args(NAMED).data.columns == ()


@pytest.mark.parametrize(
    "text, words",
    [
        ("prompt", "takes role=name,role=name, but has 'prompt' instead"),
        ("promt=a", "does not know the role 'promt'; did you mean 'prompt'"),
        ("chosen=a", "the roles are messages, prompt,"),
        ("prompt=a,prompt=b", "gives 'prompt' twice"),
        ("prompt=a,instruction=b", "gives 'instruction' twice"),
        ("prompt=a,completion=a", "gives the column 'a' two roles"),
    ],
)
def test_columns_that_cannot_be_meant_are_refused(text, words):
    with pytest.raises(ConfigError, match=f"--columns .*{words}"):
        parse_args([*NAMED, "--columns", text])


def test_every_flag_has_a_help_text():
    text = build_parser().format_help()
    assert all(row.flag in text for row in ARGUMENTS if row.flag != "--local-rank")


def test_the_world_is_read_from_the_launchers_variables():
    env = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_SIZE": "4", "CROSS_RANK": "1"}
    assert World.from_env(env) == World(rank=5, local_rank=1, size=8, local_size=4, node=1)
    assert World.from_env({}).is_main


@pytest.mark.parametrize(
    "env",
    [
        {"RANK": "1"},
        {"WORLD_SIZE": "2"},
        {"RANK": "x", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
    ],
)
def test_inconsistent_variables_are_refused(env):
    with pytest.raises(ConfigError, match="RANK"):
        World.from_env(env)


def test_quantize_needs_an_adapter_and_leaves_a_ds_configs_stage_3_out():
    words = ["--model-name-or-path", "m", "--dataset-name-or-path", "d", "--quantize", "nf4"]
    with pytest.raises(ConfigError, match="which nothing can train: give --use-lora as well"):
        parse_args(words)
    config = parse_args([*words, "--use-lora"])
    ds = read_ds_config(ROOT / "ds_configs/zero3.json", config)
    assert merge_pins(config, ds).zero is None
    assert "is left out, since it would divide what is packed" in zero3_left_out(
        config.pins, config, ds
    )
    pinned = parse_args([*words, "--use-lora", "--pin", "zero=3"])
    with pytest.raises(PlanError, match="pin zero to 0, 1 or 2"):
        merge_pins(pinned, ds)
