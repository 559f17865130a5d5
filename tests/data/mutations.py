"""Data files hurt at random: each is read, with its bad rows told, or refused in one sentence.

python -m tests.data.mutations --count 300 --tokenizer FOLDER
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.config import DataConfig, ModelConfig
from train.data.open import open_dataset
from train.errors import DataError

SECONDS = 60  # a case that takes longer hangs
KINDS = ("jsonl", "json", "csv", "parquet")
TURNS = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the lazy dog é"}]
ROWS: tuple[dict[str, Any], ...] = (
    {"messages": TURNS, "system": "a fox", "tools": [{"name": "look", "parameters": {}}]},
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "fox"}]},
    {"prompt": "hello", "completion": "world"},
    {"instruction": "say", "input": "", "output": "fox", "history": [["a", "b"]]},
    {"prompt": TURNS[:1], "completion": TURNS[1:]},
    {"text": "the quick brown fox"},
)
VALUES: tuple[Any, ...] = (
    None, 0, 1, -1.5, True, "", " ", "x" * 5000, "\ud800", "\x00", "<|im_end|>", [], {}, [[]],
    [None], [{"role": "user"}], [{"role": "assistant", "content": None}], {"text": "a"}, "[", "[1]",
    '["a"]', [{"type": "text", "text": 3}], [["a"]], [["a", "b", "c"]], "{}", 1e308, 10**30,
)  # fmt: skip
KEYS = (
    "weight", "train", "mask", "role", "content", "tool_calls", "tools", "label", "chosen",
    "system", "", "text", "answer", "from", "value", "name", "prompt", "type", "history",
)  # fmt: skip
PIECES = (
    b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b'"', b"\\", b"\n", b"\r", b"\r\n", b",",
    b"{", b"}", b"[", b"]", b"\\ud800", b"\t", b";", b"NaN", b"1e999", b"[" * 3000, b'{"a":' * 3000,
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What became of a case: `read`, `refused`, or why that is a fault."""

    kind: str
    said: str


def cases(seed: int, count: int, folder: Path, kinds: tuple[str, ...] = KINDS) -> Iterator[Path]:
    """Write `count` hurt files of each kind into a folder, and yield them."""
    for kind in kinds:
        for number in range(count):
            rng = random.Random(f"{seed} {kind} {number}")
            path = folder / f"{number}.{kind}"
            row = rng.choice(ROWS)
            rows = [{**row, "id": str(k)} for k in range(rng.choice((1, 4, 30)))]
            for _ in range(rng.randrange(3)):
                victim = rng.randrange(len(rows))
                rows[victim] = hurt_value(rows[victim], rng)
            WRITERS[kind](rows, path, rng)
            if rng.random() < 0.6:
                path.write_bytes(hurt_bytes(path.read_bytes(), rng))
            yield path


def hurt_value(value: Any, rng: random.Random) -> Any:
    """Change one thing somewhere within a value."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        act = rng.randrange(6)
        if act == 0:
            return {k: held for k, held in value.items() if k != key}
        if act == 1:
            return {**value, rng.choice(KEYS): rng.choice(VALUES)}
        if act == 2:
            return {(rng.choice(KEYS) if k == key else k): held for k, held in value.items()}
        return {**value, key: hurt_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        number = rng.randrange(len(value))
        return [*value[:number], hurt_value(value[number], rng), *value[number + 1 :]]
    return rng.choice(VALUES)


def hurt_bytes(content: bytes, rng: random.Random) -> bytes:
    """Cut, repeat, overwrite or insert at random places."""
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(content) + 1)
        end = min(len(content), at + rng.choice((1, 3, 40, 1000)))
        piece = rng.choice((*PIECES, rng.randbytes(4)))
        content = rng.choice((
            content[:at] + content[end:], content[:at] + piece + content[at:],
            content[:at] + piece + content[end:], content[:at],
            content[:end] + content[at:], content.replace(b"\n", piece, 1),
        ))  # fmt: skip
    return content


def _json_lines(rows: list[Any], path: Path, rng: random.Random) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _json_array(rows: list[Any], path: Path, rng: random.Random) -> None:
    whole = rng.choice((rows, {"data": rows}, {"train": rows, "test": rows}))
    path.write_text(json.dumps(whole, indent=rng.choice((None, 1))))


def _table(rows: list[Any], path: Path, rng: random.Random) -> None:
    import csv

    rows = [row if isinstance(row, dict) else {"text": row} for row in rows]
    names = sorted({str(name) for row in rows for name in row})
    with path.open("w", newline="", errors="surrogatepass") as file:
        writer = csv.DictWriter(file, names, delimiter=rng.choice(",;\t"))
        writer.writeheader()
        for row in rows:
            texts = {
                k: held if isinstance(held, str) else json.dumps(held) for k, held in row.items()
            }
            writer.writerow(texts)


def _columns(rows: list[Any], path: Path, rng: random.Random) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [row if isinstance(row, dict) else {"text": row} for row in rows]
    try:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    except (pyarrow.ArrowException, UnicodeError, OverflowError):  # no column holds both kinds
        texts = [json.dumps(row) for row in rows]
        table = pyarrow.table({rng.choice(KEYS): texts, "id": list(range(len(texts)))})
        parquet.write_table(table, path)


WRITERS: dict[str, Callable[[list[Any], Path, random.Random], None]] = {
    "jsonl": _json_lines, "json": _json_array, "csv": _table, "parquet": _columns,
}  # fmt: skip


def judge(path: Path, tokenizer: Path, skip: bool, cache: Path) -> Verdict:
    """Open a hurt file as a run would."""
    config = DataConfig(str(path), None, skip, 1, 64, 0)
    model = ModelConfig(None, str(tokenizer), "fp32", None, False)

    def late(signum: int, frame: object) -> None:
        raise TimeoutError(f"{path} took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        data = open_dataset(config, model, cache)
    except DataError as error:
        said = str(error)
        named = path.name in said and said.count("\n") == 0 and len(said) < 2000
        return Verdict("refused" if named else "fault", said)
    except BaseException:
        return Verdict("fault", traceback.format_exc(limit=-3))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    whole = len(data.train) + len(data.validation)
    told = "bad rows were skipped; the first: " in "\n".join(data.notices)
    return Verdict("read" if whole >= 2 and (skip or not told) else "fault", str(data.notices))


def main() -> None:
    """Judge many cases and print what became of them; exit 1 if one is a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--show", action="store_true", help="print every refusal")
    args = parser.parse_args()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, path in enumerate(cases(args.seed, args.count, folder, tuple(args.kinds))):
            found = judge(path, args.tokenizer, number % 2 == 0, folder / "cache")
            counts[f"{path.suffix} {found.kind}"] += 1
            if found.kind == "fault" or args.show:
                print(f"{found.kind}: {path.name}: {found.said!a}")
            path.unlink()
    print(", ".join(f"{what}: {times}" for what, times in sorted(counts.items())))
    raise SystemExit(any("fault" in what for what in counts))


if __name__ == "__main__":
    main()
