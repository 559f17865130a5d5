"""The budgets and the import order, read from the source: no module is imported for it."""

from __future__ import annotations

import ast
import gc
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from train.arguments import ARGUMENTS
from train.hosts import hostfile
from train.planning.dsconfig import read_ds_config

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = sorted((ROOT / "train").rglob("*.py"))
OURS = sorted(
    path for folder in ("train", "tests", "bench", "docs") for path in (ROOT / folder).rglob("*.py")
)
# What a module may import of train: itself and all to its left; `commands` stands on all but main.
ORDER = (
    "errors", "text", "paths", "locking", "names", "arguments", "command_line", "config",
    "config_file", "planning", "hosts", "launch", "data", "interfaces", "checkpoint", "output",
    "report", "engine", "loop", "run", "commands", "main",
)  # fmt: skip
# Short on purpose: each keeps two sides apart.
SEAMS = {"train/checkpoint/failpoint.py"}
TORCH = {"torch", "deepspeed"}
FREE_ROOMS = ("planning", "hosts", "launch")
FREE_TOPS = (
    "errors", "text", "paths", "locking", "names", "arguments", "command_line", "config", "cli",
)  # fmt: skip

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@pytest.fixture(scope="module", autouse=True)
def uncollected() -> Iterator[None]:
    """The collector would walk over all trees again and again, for as long as it takes to parse."""
    gc.disable()
    yield
    for kept in (functions, nodes, tree):
        kept.cache_clear()
    gc.enable()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room(path: Path) -> str:
    """The place in ORDER that a file of train/ belongs to."""
    return path.relative_to(ROOT / "train").parts[0].removesuffix(".py")


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree(path)))


@cache
def functions(path: Path) -> tuple[FunctionNode, ...]:
    return tuple(node for node in nodes(path) if isinstance(node, FunctionNode))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports, wherever it stands in it."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def test_no_file_is_longer_than_400_lines_and_no_module_shorter_than_25() -> None:
    counts = {name(path): path.read_text().count("\n") for path in OURS}
    assert {path: lines for path, lines in counts.items() if lines > 400} == {}
    modules = [name(path) for path in PACKAGE if path.name != "__init__.py"]
    assert {path for path in modules if counts[path] < 25} == SEAMS


def test_no_class_name_stands_twice() -> None:
    names = Counter(
        node.name for path in PACKAGE for node in nodes(path) if isinstance(node, ast.ClassDef)
    )
    assert [name for name, times in names.items() if times > 1] == []


def test_nine_functions_in_ten_are_at_most_27_lines() -> None:
    lengths = sorted(
        (node.end_lineno or 0) - node.lineno + 1 for path in PACKAGE for node in functions(path)
    )
    assert lengths[int(0.9 * len(lengths))] <= 27


def test_no_function_is_longer_than_60_lines() -> None:
    assert [
        f"{name(path)}:{node.lineno} {node.name}"
        for path in OURS
        for node in functions(path)
        if (node.end_lineno or 0) - node.lineno + 1 > 60
    ] == []


def test_main_is_a_table_of_contents() -> None:
    assert (ROOT / "train/main.py").read_text().count("\n") <= 60


def test_there_are_at_most_48_arguments() -> None:
    assert len({row.flag for row in ARGUMENTS}) == len(ARGUMENTS) <= 48


def test_imports_go_one_way() -> None:
    wrong = []
    for path in PACKAGE:
        own = room(path)
        if own in ("__init__", "cli"):  # cli imports each command by its name, when asked
            continue
        for line, module in imported(path):
            parts = module.split(".")
            if parts[0] == "train" and len(parts) > 1 and ORDER.index(parts[1]) > ORDER.index(own):
                wrong.append(f"{name(path)}:{line}: {module}")
    assert wrong == []


def test_torch_and_deepspeed_are_imported_in_the_engine_only() -> None:
    assert [
        f"{name(path)}:{line}: {module}"
        for path in PACKAGE
        if room(path) != "engine"
        for line, module in imported(path)
        if module.split(".")[0] in TORCH
    ] == []


def test_planning_hosts_and_launch_need_the_standard_library_only() -> None:
    allowed = sys.stdlib_module_names | {"train"}
    assert [
        f"{name(path)}:{line}: {module}"
        for path in PACKAGE
        if room(path) in (*FREE_ROOMS, *FREE_TOPS)
        for line, module in imported(path)
        if module.split(".")[0] not in allowed
    ] == []


def test_no_module_of_train_hides_another(pytestconfig: pytest.Config) -> None:
    """The launcher runs train/main.py as a file, so train/ comes first on the path for a moment."""
    setup = (ROOT / "pyproject.toml").read_text()
    third = {word.replace("-", "_").lower() for word in re.findall(r'"([\w-]+)[><=]', setup)}
    third |= {"accelerate", "huggingface_hub", "jinja2", "google", "yaml", "packaging", "pip"}
    assert {"torch", "deepspeed", "datasets", "mistral_common"} <= third
    own = {entry.stem for entry in (ROOT / "train").iterdir() if entry.stem != "__init__"}
    assert own & (sys.stdlib_module_names | third) == set()


def test_nothing_is_global_and_everything_is_annotated() -> None:
    wrong = []
    for path in PACKAGE:
        wrong += [
            f"{name(path)}:{node.lineno}: global"
            for node in nodes(path)
            if isinstance(node, ast.Global)
        ]
        for node in functions(path):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            arguments += [one for one in (node.args.vararg, node.args.kwarg) if one]
            bare = [one.arg for one in arguments if one.annotation is None]
            if node.returns is None or set(bare) - {"self", "cls"}:
                wrong.append(f"{name(path)}:{node.lineno}: {node.name} is not annotated")
    assert wrong == []


def test_what_is_public_is_explained() -> None:
    wrong = []
    for path in PACKAGE:
        if path.name != "__init__.py" and not ast.get_docstring(tree(path)):
            wrong.append(name(path))
        tops = [tree(path), *(n for n in tree(path).body if isinstance(n, ast.ClassDef))]
        for top in tops:
            if isinstance(top, ast.ClassDef) and top.name.startswith("_"):
                continue
            wrong += [
                f"{name(path)}:{node.lineno} {node.name}"
                for node in top.body
                if isinstance(node, FunctionNode | ast.ClassDef)
                and not node.name.startswith("_")
                and not ast.get_docstring(node)
            ]
    assert wrong == []


def test_every_shipped_hostfile_and_ds_config_can_be_read() -> None:
    hostfiles = [path for path in (ROOT / "hostfiles").rglob("*") if path.is_file()]
    assert all(hostfile.read(path).slots and hostfile.read(path).hardware for path in hostfiles)
    pins = {path.stem: read_ds_config(path).pins for path in (ROOT / "ds_configs").glob("*.json")}
    assert set(pins) == {"zero3", "auto", "zero1", "zero2", "zero3_offload"}
    assert dict(pins["auto"]) == {}
    assert dict(pins["zero3"]) == {"zero": "3"}


def test_the_readmes_links_and_commands_exist() -> None:
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text)
    assert [link for link in links if not (ROOT / link).exists()] == []
    blocks = "\n".join(re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL))
    words = re.findall(
        r"(?<![\w./-])(?:\./)?((?:hostfiles|ds_configs|slurm|bench)/[\w./-]+)", blocks
    )
    assert [word for word in words if not (ROOT / word.rstrip(".")).exists()] == []
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"\bmake ([a-z-]+)", blocks)) <= set(targets)
    flags = {row.flag for row in ARGUMENTS}
    given = {
        flag
        for line in re.findall(r"(?:launch\.sh|train/main\.py|train\.sbatch)\b(.*)", blocks)
        for flag in re.findall(r"(?<=\s)--[a-z][\w-]*", line)
    }
    assert given - flags - {"--hostfile", "--help"} == set()


def test_the_project_speaks_of_itself_alone() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    paths = [ROOT / line for line in listed.stdout.splitlines()] or OURS
    private = re.compile(r"/(?:home|root|Users|work|opt|tmp/v)/[\w.]|\bissue [0-9]+\b")
    wrong = []
    for path in paths:
        if path == Path(__file__) or path.name == "LICENSE" or not path.is_file():
            continue
        for number, line in enumerate(path.read_bytes().decode(errors="replace").split("\n"), 1):
            if private.search(line):
                wrong.append(f"{name(path)}:{number}: {line.strip()[:80]}")
    assert wrong == []
