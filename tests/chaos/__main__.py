"""python -m tests.chaos --kills 100 --damaged 40: hurt real runs, and count what came of it.

The disk is filled on a small tmpfs, which only root may mount; without that right these cases are
left out and said to be.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from tests.chaos import cases
from tests.chaos.cases import Bench, Tally
from tests.chaos.forked import Zygote
from tests.conftest import LARGE, mistral
from train.checkpoint.folder import complete, survey
from train.data.preset import build_preset


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--damaged", type=int, default=40, help="a third of them by a full disk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--large", action="store_true", help="a model of ten million elements")
    parser.add_argument("--summary", type=Path, help="write the counts there, as JSON")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        bench = make_bench(Path(name), asked.seed, large=asked.large)
        began = time.time()
        hurt(bench, asked.kills, asked.damaged)
        bench.zygote.close()
        report = {"seconds": round(time.time() - began), **asdict(bench.tally)}
    print(json.dumps(report, indent=2))
    if asked.summary:
        asked.summary.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if bench.tally.faults else 0


def make_bench(folder: Path, seed: int, *, large: bool) -> Bench:
    """Make a model and its data, and the run that nothing happens to."""
    words = [*inputs(folder, LARGE if large else {}), "--precision", "fp32"]
    words += ["--batch-size", "4" if large else "12", "--block-size", "96"]
    words += ["--max-steps", str(cases.TOTAL), "--save-step", str(cases.EVERY), "--eval-step", "20"]
    words += [
        "--lr",
        "5e-4" if large else "2e-3",
        "--lr-schedule",
        "linear",
        "--ds-config",
        "ds_configs/auto.json",
    ]
    words += ["--pin", "micro_tokens=400"]
    bench = Bench(Zygote(folder), folder, words, folder / "reference", random.Random(seed), Tally())
    start = bench.zygote.start(1, bench.reference, [*words, "zero=2"])
    start.wait()
    assert start.code() == 0, start.text()[-3000:]
    return bench


def inputs(folder: Path, sizes: Mapping[str, int]) -> list[str]:
    preset = build_preset(folder / "preset")
    mistral(folder / "model", preset.model, layers=2, **sizes)
    data = folder / "rows.jsonl"
    data.write_text("".join(preset.dataset.read_text().splitlines(keepends=True)[:420]))
    return ["--model-name-or-path", str(folder / "model"), "--dataset-name-or-path", str(data)]


def hurt(bench: Bench, kills: int, damaged: int) -> None:
    done = run = 0
    while done < kills:
        run += 1
        wanted = min(kills - done, bench.dice.randint(3, 8))
        done += cases.kill_until_done(bench, bench.folder / f"run{run}", wanted)
        print(f"{done} kills, {len(bench.tally.faults)} faults", flush=True)
    disks = damaged // 3 if os.geteuid() == 0 else 0
    template = unfinished(bench)
    for number in range(damaged - disks):
        kind = cases.DAMAGES[number % len(cases.DAMAGES)]
        cases.damage_and_resume(bench, template, bench.folder / f"damaged{number}", kind)
        print(f"{number + 1} damaged, {len(bench.tally.faults)} faults", flush=True)
    size = next(one.bytes for one in survey(template) if one.error is None)
    for number in range(disks):
        cases.fill_disk_and_resume(bench, bench.folder / "disk", size)
        print(f"{number + 1} full disks, {len(bench.tally.faults)} faults", flush=True)


def unfinished(bench: Bench) -> Path:
    """Make a run that was killed with two whole checkpoints, to be copied and damaged."""
    run = bench.folder / "template"
    harm = {"rank": 0, "point": "copied", "time": 5, "deed": "kill"}
    start = bench.start(run, harm, ranks=3)
    start.wait()
    assert start.harmed() and len(complete(run)) == 2, start.text()[-2000:]
    return run


if __name__ == "__main__":
    sys.exit(main())
