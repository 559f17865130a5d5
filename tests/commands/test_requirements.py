from pathlib import Path
from typing import Any

import pytest

from tests.support.fakes import host_report
from train.commands.requirements import disk_of, need_of
from train.config import RunConfig, parse_args
from train.errors import PlanError
from train.hosts.hostfile import Host
from train.hosts.probe import HostReport
from train.hosts.usage import DeviceUsage
from train.planning import find_shape

WORDS = ["--model-name-or-path", "mistral-7b", "--dataset-name-or-path", "d"]
CARD = {"name": "NVIDIA A100-SXM4-80GB", "used": 0.0, "total": 80e9, "busy": None, "power": None}
AUTO = ["--ds-config", "ds_configs/auto.json"]


def asked(*words: str) -> RunConfig:
    return parse_args([*WORDS, *AUTO, *words])


def reports(
    hosts: int, cards: int, memory: int = 10**12, **card: Any
) -> list[tuple[Host, HostReport]]:
    usage = (DeviceUsage(**{**CARD, **card}),) * cards
    found = host_report(memory=memory, available=memory, cores=64, usage=usage)
    return [(Host(f"node{n}", cards or 4), found) for n in range(hosts)]


def test_the_plan_on_the_hosts_as_found_says_what_is_needed(tmp_path: Path) -> None:
    need = need_of(asked(), reports(4, 8), tmp_path)
    assert need.words.startswith("the plan for 32 x A100-SXM-80GB is ZeRO ")
    assert "of 80.0 GB a device" in need.words
    # A checkpoint of 7.24 billion parameters is copied to the hosts that hold its shares.
    assert need.memory > 12 * 7.24e9 / 4
    pinned = need_of(asked("--pin", "zero=3", "offload=all"), reports(4, 8), tmp_path)
    assert "ZeRO 3" in pinned.words and "offload all" in pinned.words
    assert pinned.memory > need.memory


def test_hosts_without_gpus_and_cards_that_no_table_has_are_planned_for(tmp_path: Path) -> None:
    small = [*AUTO, "--dataset-name-or-path", "d", "--batch-size", "8"]
    small += ["--model-name-or-path", str(tmp_path)]
    (tmp_path / "config.json").write_text(
        '{"model_type": "mistral", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 999, '
        '"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128}'
    )
    assert "for 8 x cpu" in need_of(parse_args(small), reports(2, 0), tmp_path).words
    other = need_of(parse_args(small), reports(2, 4, name="GPU of Tomorrow"), tmp_path)
    assert "for 8 x GPU of Tomorrow" in other.words


def test_a_card_without_a_name_is_planned_for_by_its_architecture(tmp_path: Path) -> None:
    card = {"name": "AMD Radeon Graphics", "total": 206e9, "architecture": "gfx942"}
    assert "for 8 x MI300X" in need_of(asked(), reports(1, 8, **card), tmp_path).words


def test_a_run_that_fits_nowhere_is_told_what_would_help(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"nothing fits: .* use \d+ GPUs"):
        need_of(asked(), reports(1, 1, memory=64 * 10**9), tmp_path)


def test_without_a_model_nothing_is_compared_with_a_plan(tmp_path: Path) -> None:
    assert need_of(parse_args([]), reports(1, 8), tmp_path).words.startswith("no model is named")
    hub = ["--model-name-or-path", "some/model", "--dataset-name-or-path", "d"]
    found = need_of(parse_args(hub), reports(1, 8), tmp_path)
    assert found.words.startswith("some/model is not here yet") and found.memory == 0
    assert need_of(asked(), [], tmp_path).memory == 0


@pytest.mark.parametrize(
    ("words", "each"),
    [
        (["--save-step", "0"], 12 + 2),
        (["--save-step", "10", "--keep", "2"], 3 * 12 + 2),
        (["--save-step", "10", "--keep", "5", "--max-steps", "15"], 2 * 12 + 2),
        (["--save-step", "0", "--precision", "fp32"], 12 + 4),
    ],
)
def test_the_disk_holds_the_checkpoints_that_are_kept_and_the_model(
    words: list[str], each: int
) -> None:
    shape = find_shape("mistral-7b")
    assert disk_of(asked(*words), shape) == each * shape.parameters
    adapter = disk_of(asked(*words, "--use-lora", "--lora-r", "8"), shape)
    assert adapter == each * shape.adapter_parameters(8)
