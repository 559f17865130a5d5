"""Published measurements as the planner's own questions: a row becomes a PlanRequest and a Plan."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.config import LoraConfig
from train.errors import PlanError
from train.planning.cluster import Cluster, cluster_of
from train.planning.hardware import find_gpu
from train.planning.lengths import Lengths, lengths_of
from train.planning.pins import Implementation, Pins
from train.planning.plan import Plan
from train.planning.request import PlanRequest
from train.planning.shape import Shape

FP8 = ("fp8", "mxfp8", "nvfp4", "nf4", "int4")
GATED = ("llama", "mistral", "qwen", "yi", "internlm", "gemma", "tinyllama", "olmo")
# Kernels that a source's own text names, where its rows' notes do not: Megatron before flash
# attention forms the scores and has fused norms; the others use flash attention.
DENSE_SOURCES = ("bigscience", "Korthikanti", "SC21", "MT-NLG", "autotuning/hf", "zero3-offload")
FUSED_SOURCES = (*DENSE_SOURCES[:4], "llm-foundry", "InternEvo", "TinyLlama", "Llama 3 paper")


@dataclass(frozen=True)
class Row:
    """One published point: what was run, what was measured (None where the source is silent)."""

    source: str
    sweep: str
    series: str
    request: PlanRequest
    plan: Plan
    tokens_per_s: float | None
    peak: float | None
    oom: bool
    decided: bool
    stated: bool
    context: bool
    key: tuple[str, ...]

    @property
    def layout(self) -> tuple[Any, ...]:
        """All that a prediction reads of the row, beside the cluster."""
        return (self.plan, self.request.shape, self.request.pins, self.request.implementation)

    @property
    def lengths(self) -> Lengths:
        """Full blocks: every source trains on packed or padded blocks."""
        return lengths_of(None, self.request.block_size)


def read(path: Path, cautioned: bool = False) -> list[Row]:
    """Return the usable rows: a known shape, GPU and layout, no 8-bit or 4-bit arithmetic.

    With `cautioned`, those that bear a caution instead: they are never fitted.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = [raw for raw in csv.DictReader(file) if bool(raw["caution"]) == cautioned]
    return [row for raw in rows for row in _usable(raw)]


def _usable(raw: dict[str, str]) -> Iterator[Row]:
    need = ("n_layers", "hidden", "seq_len", "n_gpus", "micro_batch")
    if any(not raw[name] for name in need):
        return
    if any(word in raw["precision"].lower() for word in FP8) or raw["kind"] == "qlora":
        return
    if "ANALYTIC" in raw["notes"] or "8bit" in raw["notes"] or "8-bit" in raw["notes"]:
        return
    try:
        yield _row(raw)
    except (PlanError, ZeroDivisionError):
        return


def _row(raw: dict[str, str]) -> Row:
    whole = {name: int(float(raw[name] or 0)) for name in (
        "n_gpus", "gpus_per_node", "seq_len", "global_batch_seqs", "micro_batch", "grad_accum",
        "tp", "pp", "cp_sp") if re.fullmatch(r"[\d.]*", raw[name])}  # fmt: skip
    tp, pp, sp = (max(1, whole.get(name, 1)) for name in ("tp", "pp", "cp_sp"))
    gpus = whole["n_gpus"]
    dp = gpus // (tp * pp * sp)
    if dp * tp * pp * sp != gpus:
        raise PlanError("the layout does not use the GPUs")
    accumulation = whole["grad_accum"] or -(
        -whole["global_batch_seqs"] // max(1, whole["micro_batch"] * dp)
    )
    accumulation = max(1, accumulation)
    batch = whole["global_batch_seqs"] or whole["micro_batch"] * dp * accumulation
    per_host = min(gpus, whole["gpus_per_node"] or 8)
    request = PlanRequest(
        shape=shape_of_row(raw), batch_size=batch, block_size=whole["seq_len"],
        cluster=_cluster(raw, gpus, per_host), pins=divided(raw),
        implementation=implementation(raw),
        lora=LoraConfig(16, 32, 0.0) if raw["kind"] == "lora" else None,
    )  # fmt: skip
    plan = Plan(
        zero=int(raw["zero"] or 0), micro_tokens=whole["micro_batch"] * whole["seq_len"],
        recompute=raw["recompute"] or "none", offload=raw["offload"] or "none", dp=dp, tp=tp,
        pp=pp, sp=sp, accumulation=accumulation,
    )  # fmt: skip
    said = (raw["recompute"], raw["zero"], raw["tp"], raw["pp"], raw["seq_len"])
    tokens = raw["tokens_per_s_per_gpu"]
    return Row(
        source=raw["source"], sweep=_joined(raw, _SWEEP),
        series=_joined(raw, _SERIES), request=request, plan=plan,
        tokens_per_s=float(tokens) if tokens else None,
        peak=float(raw["peak_mem_gib"]) * 2**30 if raw["peak_mem_gib"] else None,
        oom=raw["oom"] == "1", decided=all(said) and not _hidden(raw),
        stated=_stated(raw),
        context="nvidia-smi" in raw["notes"],
        key=tuple(value for name, value in raw.items() if name not in _MEASURED),
    )  # fmt: skip


def _hidden(raw: dict[str, str]) -> bool:
    """Whether speed depends on what no column shows: how much is padding, a host's processors."""
    return "cpu" in raw["sharding"] or "unpacked" in raw["notes"]


def _stated(raw: dict[str, str]) -> bool:
    """Whether the columns decide the bytes: not where weights or moments are of another type.

    torchtune's single-device recipes keep everything in bf16, and change the optimizer row by row.
    """
    named = all((raw["recompute"], raw["zero"], raw["tp"], raw["pp"]))
    return named and "pure" not in raw["precision"] and "torchtune" not in raw["source"]


_MEASURED = ("tokens_per_s_per_gpu", "mfu", "hfu", "peak_mem_gib", "notes", "source")


# Rows of a sweep differ in their layout; rows of a series in the number of GPUs only.
_SWEEP = ("source", "model", "gpu", "n_gpus", "seq_len", "global_batch_seqs")
_SERIES = (
    "source", "model", "gpu", "sharding", "tp", "pp", "recompute", "seq_len", "micro_batch",
    "grad_accum",
)  # fmt: skip


def _joined(raw: dict[str, str], names: tuple[str, ...]) -> str:
    return "|".join(raw[name] for name in names)


def shape_of_row(raw: dict[str, str]) -> Shape:
    """Return the shape: gated and RMS norms for the Llama-like names, GPT-like otherwise."""
    hidden = int(float(raw["hidden"]))
    heads = int(float(raw["n_heads"] or max(1, hidden // 128)))
    llama = any(word in raw["model"].lower() for word in GATED)
    ffn = int(float(raw["ffn_hidden"] or (4 * hidden)))
    plain = {} if llama else {
        "gated": False, "norm": "layer", "norm_bias": True, "activation": "gelu",
        "tied": True, "bias_qkv": True, "bias_out": True, "bias_mlp": True,
    }  # fmt: skip
    vocab = int(float(raw.get("vocab") or _vocabulary(raw)))
    return Shape(
        name=raw["model"], layers=int(float(raw["n_layers"])), hidden=hidden, heads=heads,
        kv_heads=int(float(raw["n_kv_heads"] or heads)), head_dim=hidden // heads, ffn=ffn,
        vocab=vocab, **plain,  # type: ignore[arg-type]
    )  # fmt: skip


def _vocabulary(raw: dict[str, str]) -> int:
    """Return the vocabulary that notes name, or GPT-2's, padded."""
    word = re.search(r"vocab\D{0,4}(\d+)k", raw["notes"])
    return int(word[1]) * 1000 if word else 50304


def divided(raw: dict[str, str]) -> Pins:
    """Return how the row's ranks divide states, and the tokens of norms."""
    return Pins(
        shards="host" if "groups" in raw["sharding"] else "all",
        sequence="tensor" if _splits_norms(raw) else "whole",
    )


def implementation(raw: dict[str, str]) -> Implementation:
    """Return the kernels that notes or source name, and how gradients are added up."""
    notes = raw["notes"].lower()
    dense = any(word in raw["source"] for word in DENSE_SOURCES)
    fused = any(word in raw["source"] for word in FUSED_SOURCES)
    if "kernel=" in notes:
        dense = "flash" not in notes
        fused = "rms kernel" in notes
    fused = fused or "torch.compile" in notes or "+compile" in notes
    if "cumulative step" in notes:  # each row adds to the one before it; compiling comes third
        fused = "baseline" not in notes and "+packed" not in notes
    return Implementation(
        attention="dense" if dense else "flash",
        kernels="fused" if fused else "plain",
        gradients="fp32" if "fp32 grad accum" in raw["precision"] else "bf16",
    )


def _splits_norms(raw: dict[str, str]) -> bool:
    """Whether Megatron's sequence parallelism is named: `cp_sp` or the notes do, as part of tp."""
    return "megatron-sp" in raw["cp_sp"] or "+ seq-parallel" in raw["notes"]


def _cluster(raw: dict[str, str], gpus: int, per_host: int) -> Cluster:
    word = re.search(r"(\d+)x(\d+)Gb|(\d+) ?Gbps", raw["notes"])
    hardware = {}
    if word:
        hardware["nic"] = f"{word[1]}x{word[2]}Gb" if word[1] else f"1x{word[3]}Gb"
    hosts = [(f"h{i}", min(per_host, gpus - i * per_host)) for i in range(-(-gpus // per_host))]
    return cluster_of(hosts, hardware, find_gpu(raw["gpu"].replace("A800", "A100")))
