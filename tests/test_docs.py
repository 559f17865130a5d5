"""docs/design.md names the stages and their functions as the code does."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs/design.md").read_text()
UNTOLD = ("stage", "say", "host_name", "close", "uncollected")
NAMED = re.findall(r"`(train/[\w/]+\.py)` `(\w+)`", TEXT)


def test_every_file_and_function_of_the_two_walks_exists():
    assert len(NAMED) > 30
    for file, function in NAMED:
        tree = ast.parse((ROOT / file).read_text())
        defined = {
            node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        assert function in defined, f"{file} has no {function}"


def test_the_stages_stand_in_the_order_in_which_main_calls_them():
    run = next(
        node
        for node in ast.parse((ROOT / "train/main.py").read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "run"
    )
    calls = sorted(
        (node.lineno, getattr(node.func, "attr", getattr(node.func, "id", "")))
        for node in ast.walk(run)
        if isinstance(node, ast.Call)
    )
    called = [name for _, name in calls if name not in UNTOLD]
    walk = TEXT[TEXT.index("## From argv") : TEXT.index("## A sample")]
    told = [name for _, name in re.findall(r"^- `(train/[\w/]+\.py)` `(\w+)`", walk, re.MULTILINE)]
    assert [name for name in told if name in called] == called


@pytest.mark.parametrize("path", [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"])
def test_files_that_documents_name_exist(path):
    named = re.findall(r"`((?:train|tests|docs|bench|examples)/[\w./-]+)`", path.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


@cache
def strings(path: Path) -> str:
    """Every string of a Python file, those of f-strings with their braces, or a script's text."""
    text = path.read_text()
    if path.suffix != ".py":
        return text
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.JoinedStr):
            parts = [
                part.value if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
                for part in node.values
            ]
            found.append("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            found.append(node.value if isinstance(node.value, str) else node.value.decode())
    return "\n".join(found)


def test_what_a_run_says_it_did_otherwise_is_what_the_code_says():
    text = (ROOT / "docs/honesty.md").read_text()
    rows = re.findall(r"^\| (?!what happens|-)(.+?) \| `(.+?)` \| `(.+?)` \|$", text, re.MULTILINE)
    assert len(rows) == len(re.findall(r"^\| (?!what happens)", text, re.MULTILINE)) > 5
    untrue = [said for _, said, where in rows if said not in strings(ROOT / where)]
    assert not untrue
