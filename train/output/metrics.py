"""metrics.jsonl, read by those who go on from it and those who report on it: each step once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from train.errors import ConfigError

PHASES = ("save", "end", "start", "imports", "join", "load", "first_step")  # of a pause, in order


@dataclass(frozen=True)
class Kind:
    """One kind of line: whole numbers, numbers and texts that it has; numbers that may be null."""

    counts: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


# By the key that tells a line's kind; a step's has none of its own.
KINDS = {
    "restart": Kind(
        ("step", "restart", "lost", "total", "world_size"), ("time",), (), ("pause", *PHASES)
    ),
    "eval_loss": Kind(("step", "eval_tokens"), ("eval_loss",)),
    "": Kind(
        ("step", "tokens", "loss_tokens", "world_size", "peak_bytes"),
        ("loss", "lr", "seconds", "tokens_per_s", "time"),
        ("sample_hash",),
        ("mfu", "grad_norm", "samples", "padded_tokens"),
    ),
}


@dataclass(frozen=True)
class Broken:
    """A line that counts for nothing: its number from 1, its bytes as they stand, and why."""

    number: int
    line: bytes
    why: str


@dataclass(frozen=True)
class Metrics:
    """What a metrics.jsonl holds: lines of steps, evaluations and starts, in order, each once."""

    steps: tuple[Mapping[str, Any], ...] = ()
    evals: tuple[Mapping[str, Any], ...] = ()
    restarts: tuple[Mapping[str, Any], ...] = ()
    broken: tuple[Broken, ...] = ()

    def lacking(self, step: int) -> str:
        """What is to be said of a run that goes on from `step`; empty: each step stands here."""
        lost = step - sum(line["step"] <= step for line in self.steps)
        return f"metrics.jsonl lacks {lost} of the {step} steps that were made" if lost else ""

    @property
    def notice(self) -> str:
        """What is wrong with the file, in one sentence; empty: nothing."""
        if not self.broken:
            return ""
        told = [f"line {broken.number} {broken.why}" for broken in self.broken[:5]]
        more = f", and {len(self.broken) - 5} more" if len(self.broken) > 5 else ""
        return f"metrics.jsonl: {len(self.broken)} lines do not count: {', '.join(told)}{more}"


def read_metrics(path: Path) -> Metrics:
    """Read a metrics.jsonl, empty where there is none; of a step that stands twice the last counts.

    Raises:
        ConfigError: it is not a file that can be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return Metrics()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror or error}): repair it, or move it away"
        ) from None
    found: dict[tuple[str, int, str], tuple[int, Mapping[str, Any]]] = {}
    broken = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = _record(line)
        except (ValueError, RecursionError) as error:
            broken.append(Broken(number, line, str(error)))
            continue
        kind = _kind(record)
        of = str(record.get("eval_data", ""))  # a step may be evaluated on other rows, too
        at = (kind, record["restart" if kind == "restart" else "step"], of)
        if at in found:
            earlier = found[at][0]
            broken.append(Broken(earlier, lines[earlier - 1], f"stands again in line {number}"))
        found[at] = (number, record)
    order = sorted(found, key=lambda at: (at[1], found[at][0]))
    kept = {kind: [found[at][1] for at in order if at[0] == kind] for kind in KINDS}
    return Metrics(
        steps=tuple(kept[""]),
        evals=tuple(kept["eval_loss"]),
        restarts=tuple(kept["restart"]),
        broken=tuple(sorted(broken, key=lambda broken: broken.number)),
    )


def of_rows(evals: Sequence[Mapping[str, Any]], rows: str) -> list[Mapping[str, Any]]:
    """Return the evaluations on `rows` (a fingerprint), and those that do not say on which.

    Losses on other rows are no better or worse than these: a later start may name others.
    """
    return [line for line in evals if line.get("eval_data", rows) == rows]


def rewind_metrics(path: Path, step: int) -> Metrics:
    """Keep the lines up to `step`; what is broken goes to metrics.broken beside it, never lost.

    Of a run that begins anew, at step 0, no evaluation is kept: it may have been another model's.
    Starts happened, whatever became of their steps: all their lines stay.

    Returns what stood in the file; at step 0, what counts of it.

    Raises:
        ConfigError: it is not a file that can be read.
    """
    found = read_metrics(path)
    found = found if step else replace(found, evals=())
    if found.broken:
        with path.with_name("metrics.broken").open("ab") as file:
            file.writelines(broken.line + b"\n" for broken in found.broken)
    kept = [line for line in (*found.steps, *found.evals) if line["step"] <= step]
    kept += found.restarts
    kept.sort(key=lambda line: (line["step"], list(KINDS)[::-1].index(_kind(line))))
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    partial.replace(path)
    return found


def _record(line: bytes) -> Mapping[str, Any]:
    """Return the record of one line.

    Raises:
        ValueError: it is no record of a step, evaluation or start; it says what it is instead.
    """
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    except ValueError:
        raise ValueError("is not JSON") from None
    if not isinstance(record, dict):
        raise ValueError("is not an object")
    kind = KINDS[_kind(record)]
    unknown = [key for key in kind.optional if record.get(key) is not None]
    wrong = [key for key in kind.counts if not _number(record.get(key), int) or record[key] < 0]
    wrong += [key for key in (*kind.numbers, *unknown) if not _number(record.get(key), float)]
    wrong += [key for key in kind.texts if not isinstance(record.get(key), str)]
    if wrong:
        raise ValueError(f"has no usable '{wrong[0]}'")
    return record


def _kind(record: Mapping[str, Any]) -> str:
    return next(name for name in KINDS if not name or name in record)


def _number(value: object, kind: type) -> bool:
    """Whether a value is a whole number (int) or any number (float), of a size that is real."""
    whole = type(value) is int and abs(value) < 1 << 62
    return whole or (kind is float and type(value) is float)
