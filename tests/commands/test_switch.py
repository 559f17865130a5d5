import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from train.commands import switch
from train.errors import HostfileError
from train.hosts import flavor, hostfile
from train.paths import shipped


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hosts = tmp_path / "hostfiles"
    hosts.mkdir()
    lines = "#: gpu=A100-SXM-80GB nic=200Gb\n" + "".join(f"n{i} slots=4\n" for i in range(8))
    (hosts / "8node").write_text(lines)
    (hosts / "1node").write_text("n0 slots=4\n")
    (hosts / "broken").write_text("n0 slots=x\n")
    return hosts


def answers(*lines: str) -> Iterator[str]:
    yield from (line + "\n" for line in lines)
    while True:
        yield ""


def test_the_menu_shows_gpus_memory_and_the_current_flavor(folder: Path) -> None:
    shown = switch.menu(flavor.find(folder), folder / "8node").splitlines()
    assert shown[0].split() == ["1)", "1node", "4", "x", "GPU"]
    assert shown[1].split() == ["2)", "8node", "32", "x", "A100-SXM-80GB", "2560", "GB", "*"]
    assert "broken:1:" in shown[2]


def test_a_flavor_of_different_gpus_names_all_of_them() -> None:
    lines = "#: gpu=A100-SXM-80GB\na slots=4\nb slots=4\nc slots=2 #: gpu=A100-SXM-40GB\n"
    told = ("8 x A100-SXM-80GB + 2 x A100-SXM-40GB", "720 GB")
    assert flavor.describe(hostfile.parse(lines)) == told


def test_a_number_is_read_until_one_is_valid_and_remembered(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = tmp_path / "config" / "anyrank" / "flavor"
    lines = answers("", "9", "3", "2")
    assert switch.ask(flavor.find(folder), memory, lambda: next(lines)) == 0
    shown = capsys.readouterr().out
    assert "no flavor '9'" in shown and "broken:1" in shown
    assert "current flavor is 8node: 32 x A100-SXM-80GB, 2560 GB." in shown
    assert flavor.current(memory) == (folder / "8node").resolve()
    assert stat.S_IMODE(memory.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("word", ["q", None])
def test_q_or_the_end_of_input_changes_nothing(
    folder: Path, tmp_path: Path, word: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = tmp_path / "flavor"
    lines = answers(*([word] if word else []))
    assert switch.ask(flavor.find(folder), memory, lambda: next(lines)) == 0
    assert flavor.current(memory) is None
    assert capsys.readouterr().out.endswith("Nothing was changed: this machine is used.\n")
    flavor.remember(memory, flavor.choose("8node", flavor.find(folder)))
    lines = answers("q")
    assert switch.ask(flavor.find(folder), memory, lambda: next(lines)) == 0
    assert "Nothing was changed: 8node is used." in capsys.readouterr().out


def test_a_name_or_a_path_chooses_at_once_and_a_near_name_is_suggested(folder: Path) -> None:
    found = flavor.find(folder)
    assert flavor.choose("8node", found).path == folder / "8node"
    assert flavor.choose(str(folder / "1node"), ()).name == "1node"
    with pytest.raises(HostfileError, match="did you mean '8node'"):
        flavor.choose("8nodes", found)


def test_the_choice_is_of_one_user_and_one_checkout(tmp_path: Path) -> None:
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    here, there = (flavor.choice_file(env, tmp_path / name) for name in ("here", "there"))
    assert here != there and here.parent == tmp_path / "anyrank"
    assert flavor.choice_file({"HOME": "/h"}, tmp_path).is_relative_to("/h/.config")


def test_the_command_chooses_and_forgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert switch.command(["8node"]) == 0
    memory = next((tmp_path / "anyrank").iterdir())
    assert flavor.current(memory) == shipped("hostfiles/8node")
    assert switch.command(["--here"]) == 0
    assert flavor.current(memory) is None
    assert "2560 GB" in capsys.readouterr().out
