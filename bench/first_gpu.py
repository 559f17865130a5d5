"""The first ten minutes on a GPU: what nobody can know without one, asked in order.

    bash bench/first_gpu.sh [--cpu] [--json FILE]

A question that fails does not keep the next from being asked. The answers are a table, and JSON in
bench/results/first_gpu.json. With --cpu the same questions are asked of small sizes, so that the
questions themselves are known to work; nothing is written then, unless --json names a file.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import record, step
from train.engine import attention
from train.engine.attention_probe import disagreement
from train.engine.device import architecture
from train.engine.kernels import refused
from train.engine.loss import summed_cross_entropy
from train.engine.pace import Stopwatch
from train.launch import oom
from train.output.metrics import read_metrics
from train.planning.balance import is_watched

ROOT = Path(__file__).resolve().parents[1]
GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
Answer = Iterator[tuple[str, object, bool]]


def machine(device: torch.device) -> Answer:
    """What the machine is, as torch and the commands see it."""
    yield "torch", f"{torch.__version__}, {', '.join(torch.cuda.get_arch_list()) or 'no GPU'}", True
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        yield "device", f"{found.name} ({architecture(found)})", True
    for name in ("smi", "check"):
        done = run("-P", "-m", "train.cli", name)
        yield f"anyrank {name}", done.stdout.strip().splitlines()[-1], done.returncode == 0


def probe(device: torch.device) -> Answer:
    """The attention that a run would choose, against every score written out."""
    for heads in ((4, 4, 64), (4, 2, 128), (4, 1, 256)):
        for window in (None, 16):
            for ends in (False, True):
                said = disagreement(
                    attention.packed_attention, device, torch.bfloat16, heads, window, ends=ends
                )
                where = f"heads {heads}, window {window}, {'ends' if ends else 'whole samples'}"
                yield where, said or "agrees", not said


def fp32_attention(device: torch.device) -> Answer:
    """Whether grouped heads in fp32 keep memory that grows with the length, not its square."""
    kept = {}
    for length in (1024, 2048) if device.type == "cuda" else (64, 128):
        rows = [torch.randn(1, heads, length, 128, device=device, requires_grad=True)
                for heads in (32, 8, 8)]  # fmt: skip
        bounds = torch.tensor([0, length], dtype=torch.int32, device=device)
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        out, _ = attention.packed_attention(
            torch.nn.Identity(), *rows, None, cu_seq_lens_q=bounds, max_length_q=length
        )
        kept[length] = torch.cuda.memory_allocated(device) - before if before else 0
        out.sum().backward()
    few, many = kept.values()
    yield "bytes kept at one and two lengths", f"{few}, {many}", many <= 2.5 * few


def out_of_memory(device: torch.device) -> Answer:
    """Whether what the libraries say is known as memory that ran out."""

    def allocate() -> None:
        torch.empty(1 << 50, dtype=torch.uint8, device=device)

    def pin() -> None:
        torch.empty(1 << 50, dtype=torch.uint8, pin_memory=True)

    for act in (allocate, *([pin] if device.type == "cuda" else [])):
        try:
            act()
        except (RuntimeError, MemoryError) as error:
            said = str(error).splitlines()[0]
            yield act.__name__, said, oom.says_so(str(error)) or isinstance(error, MemoryError)


def kernels(device: torch.device) -> Answer:
    """Whether Liger's kernels run here, and the fused head's loss is the plain one's."""
    if device.type != "cuda":
        yield "Liger", "runs on GPUs only", True
        return
    said = refused()
    yield "Liger", said or "runs", not said
    from train.engine.kernels import FusedHead

    head = torch.nn.Linear(512, 4096, bias=False, device=device, dtype=torch.bfloat16)
    hidden = torch.randn(1, 4096, 512, device=device, dtype=torch.bfloat16)
    targets = torch.randint(0, 4096, (4096,), device=device)
    plain, _ = summed_cross_entropy(head(hidden).flatten(0, 1), targets, 1.0)
    fused = FusedHead(head)
    fused.set_targets(targets, 1.0)
    off = abs(float(fused(hidden)) / float(plain) - 1)
    yield "fused head, relative difference of the loss", f"{off:.1e}", off < 2e-3


def pace(device: torch.device) -> Answer:
    """Whether the stopwatch by which work is balanced counts what products take."""
    width, rows = (4096, 8192) if device.type == "cuda" else (256, 512)
    layers = [torch.nn.Linear(width, width, device=device) for _ in range(4)]
    module, hidden = torch.nn.Sequential(*layers), torch.randn(rows, width, device=device)
    watch, taken = Stopwatch(module, device), []
    for number in range(12):
        began = time.perf_counter()
        with watch.watching(number), torch.no_grad():
            module(hidden)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if is_watched(number):
            taken.append(time.perf_counter() - began)
        watch.note()
    found, whole = min(watch.paces, key=lambda one: one.seconds), min(taken)
    said = f"{1e3 * found.seconds:.2f} ms of {1e3 * whole:.2f}, {found.rate / 1e12:.2f} TFLOP/s"
    yield "four products", said, 0.3 * whole <= found.seconds <= 1.05 * whole


def quickstart(device: torch.device) -> Answer:
    """The README's first command, and the same with a rank killed on the way."""
    steps = 60 if device.type == "cuda" else 4
    if device.type == "cuda":  # elsewhere the other says as much
        with tempfile.TemporaryDirectory() as folder:
            done = launch(folder, "--max-steps", str(steps // 2)).wait()
            yield "quickstart, steps", last_step(Path(folder)), done == 0
    with tempfile.TemporaryDirectory() as folder:
        process = launch(folder, "--max-steps", str(steps), "--save-step", str(steps // 4))
        killed = kill_a_rank(process, Path(folder), steps // 4 + 1)
        code = process.wait()
        rows = [row["step"] for row in read_metrics(Path(folder) / "metrics.jsonl").steps]
        whole = rows == list(range(1, steps + 1))
        yield (
            "killed and resumed, steps",
            f"{len(rows)} after kill -9 of {killed}",
            (code == 0 and whole and killed != 0),
        )


def plans(device: torch.device) -> Answer:
    """Predicted against measured: full fine-tuning with and without kernels, LoRA, ragged rows."""
    full = "--shape mistral-7b --layers 4 --precision bf16 --block 2048 --batch 32 --full --steps 6"
    lora = full.replace("--layers 4", "--layers 32").replace("--batch 32", "--batch 16") + " --lora"
    if device.type != "cuda":
        full = "--shape small --layers 2 --block 64 --batch 4 --full --steps 2"
        lora = full + " --lora"
    grid = " --zero 1 --recompute none --samples 2"
    ragged = full.replace(" --full", "")
    cases = {"kernels": full, "plain": full + " --plain", "LoRA": lora, "ragged": ragged}
    if device.type != "cuda":
        del cases["plain"]  # the same there
    for name, words in cases.items():
        argv = (words + grid).split()
        with tempfile.TemporaryDirectory() as folder:
            rows = step.grid(step.parser().parse_args(argv), Path(folder), argv)
        for row in rows:
            mfu = f", MFU {row['mfu']:.1%}" if row["mfu"] else ""
            yield (
                name,
                (
                    f"{row['tokens_per_s']:.0f} tokens/s{mfu}, {row['seconds']:.3f} s (predicted "
                    f"{row['predicted_seconds']:.3f}), {row['peak_gib']:.1f} GiB (predicted "
                    f"{row['predicted_gib']:.1f}), {row['reserved_gib']:.1f} reserved"
                ),
                True,
            )
        if not rows:
            yield name, "no step ended", False


QUESTIONS: tuple[Callable[[torch.device], Answer], ...] = (
    machine, probe, fp32_attention, out_of_memory, kernels, pace, quickstart, plans,
)  # fmt: skip


def answers_of(question: Callable[[torch.device], Answer], device: torch.device) -> Answer:
    """Yield a question's answers; the last one is its error, if it has one."""
    try:
        yield from question(device)
    except Exception as error:
        yield type(error).__name__, (str(error).strip().splitlines() or [""])[0], False


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run this Python with the words, here."""
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )


def launch(folder: str, *words: str) -> subprocess.Popen[bytes]:
    """Start the preset on one rank, supervised, in a run folder."""
    argv = [sys.executable, "-P", "-m", "train.launch", "1", "--run-dir", folder, *words]
    return subprocess.Popen(
        argv, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL
    )


def last_step(folder: Path) -> int:
    """Return the last step that a run has written; 0 before the first."""
    path = folder / "metrics.jsonl"
    return max((row["step"] for row in read_metrics(path).steps), default=0) if path.exists() else 0


def kill_a_rank(process: subprocess.Popen[bytes], folder: Path, step: int) -> int:
    """Kill the rank once the run has reached a step; return its process id, 0 if it ended first."""
    while process.poll() is None:
        if last_step(folder) >= step:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                words = path.read_bytes().decode(errors="replace").split("\0")
                if str(folder) in words and any(word.endswith("train/main.py") for word in words):
                    os.kill(int(path.parent.name), signal.SIGKILL)
                    return int(path.parent.name)
        time.sleep(0.1)
    return 0


def main(argv: Sequence[str]) -> int:
    """Ask every question; print and write the answers; return 1 if one is not as it should be."""
    parser = argparse.ArgumentParser(description="the first ten minutes on a GPU")
    parser.add_argument("--cpu", action="store_true", help="small sizes, without a GPU")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for question in QUESTIONS:
        began = time.monotonic()
        for noun, found, well in answers_of(question, CPU if given.cpu else GPU):
            seconds = round(time.monotonic() - began, 1)
            rows.append({"question": question.__name__, "of": noun, "well": well,
                         "answer": str(found), "seconds": seconds})  # fmt: skip
            print(
                f"{'ok  ' if well else 'FAIL'} {question.__name__:<15} {noun}: {found}", flush=True
            )
    wrong = [row for row in rows if not row["well"]]
    print(f"{len(rows) - len(wrong)} of {len(rows)} answers are as they should be")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    elif not given.cpu:
        print(f"written to {record.write('first_gpu', rows, {'wrong': len(wrong)})}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
