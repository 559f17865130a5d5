"""A choice in words: the best plans side by side, what was rejected, warnings, log lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from train.planning.advice import pin_cost, scaling_warning, with_advice
from train.planning.cluster import Cluster, Device
from train.planning.plan import Plan
from train.planning.request import Candidate, Choice, PlanRequest
from train.planning.shares import describe_shares, shares_of
from train.text import GIB, align, fitted

SHOWN, FEW = 8, 3  # plans, and in a low terminal
LOW = 30  # lines
LEGEND = (
    "GiB of one GPU, and host: GiB of one host; s: seconds of a step.",
    "tokens of a micro-batch, acc: micro-batches a step; *: chosen, -: does not fit.",
)


def explain(
    request: PlanRequest,
    choice: Choice,
    *,
    everything: bool = False,
    width: int | None = None,
    height: int | None = None,
    told: Sequence[str] = (),
) -> str:
    """Return the explanation that `anyrank plan` prints.

    Args:
        everything: list every legal plan.
        width: of the terminal, in characters; what a wider table would hold is left out, and said.
        height: of the terminal, in lines: a low one shows fewer plans.
        told: what else is to be said of it, a paragraph each.
    """
    blocks = [_header(request)]
    choice = with_advice(request, choice)
    if choice.chosen is None:
        text = choice.nearest or "nothing fits"
        blocks.append(f"{text[0].upper()}{text[1:]}.")
        shown: Sequence[Candidate] = sorted(choice.candidates, key=lambda c: c.memory.total)
    else:
        plan = choice.chosen.plan
        shares = describe_shares(request, plan, shares_of(request, plan))
        blocks.append("\n".join((*log_lines(choice), *shares)))
        shown = choice.possible
    most = SHOWN if height is None or height >= LOW else FEW
    shown = choice.candidates if everything else _best_of_each(shown)[:most]
    table = _table(shown, choice.chosen, width)
    words = [table, *told, *_remarks(request, choice)]
    return "\n\n".join(block if block is table else fitted(block, width)
                       for block in (*blocks, *words))  # fmt: skip


def _best_of_each(ranked: Sequence[Candidate]) -> list[Candidate]:
    """Keep the first of each stage, recomputation and offload: the others differ in size only."""
    kinds: dict[tuple[int, str, str], Candidate] = {}
    for candidate in ranked:
        plan = candidate.plan
        kinds.setdefault((plan.zero, plan.recompute, plan.offload), candidate)
    return list(kinds.values())


def describe_model(request: PlanRequest) -> str:
    """Say what is trained: its size, how much of it, in which precision."""
    how = f"LoRA r={request.lora.r}" if request.lora else "all parameters"
    how += f" over a base in {request.quantize}" if request.quantize else ""
    shape = request.shape
    return (
        f"{shape.name}: {shape.parameters / 1e9:.2f} billion parameters, {how}, {request.precision}"
    )


def _header(request: PlanRequest) -> str:
    cluster = request.cluster
    hosts = f"{len(cluster.sizes)} host" + ("s" if len(cluster.sizes) > 1 else "")
    return (
        f"{describe_model(request)}\n"
        f"{describe_gpus(cluster)} on {hosts}, "
        f"{request.batch_size} samples of up to {request.block_size} tokens a step"
    )


def describe_gpus(cluster: Cluster) -> str:
    """Return `8 x A100-SXM-80GB (79 GiB)`, and more of it where GPUs differ."""
    kinds = Counter((gpu.name, gpu.memory) for gpu in cluster.each or [cluster.gpu] * cluster.gpus)
    words = [f"{n} x {name} ({memory / GIB:.0f} GiB)" for (name, memory), n in kinds.items()]
    return " + ".join(words)


COLUMNS = (
    "zero", "recompute", "offload", "tokens", "acc", "|", "weights", "grads", "optim", "activ",
    "logits", "buffers", "reserve", "GiB", "host", "|", "compute", "comm", "pipe", "offl", "s",
    "|", "tokens/s", "MFU",
)  # fmt: skip


# Of these columns a narrow terminal shows the totals only.
PARTS = frozenset((*range(5, 13), *range(15, 20), 21))


def _table(candidates: Sequence[Candidate], chosen: Candidate | None, width: int | None) -> str:
    """Return the widest form of the table that fits: `GiB` is of a GPU, `host` of a host."""
    rows = [COLUMNS, *(_cells(candidate) for candidate in candidates)]
    totals = [tuple(cell for i, cell in enumerate(row) if i not in PARTS) for row in rows]
    marks = [" ", *("*" if c is chosen else " " if c.fits else "-" for c in candidates)]
    whole = [_lines(marks, rows, gap) for gap in ("  ", " ")]
    forms = [*whole, *(_lines(marks, totals, gap) for gap in ("  ", " "))]
    fitting = (lines for lines in forms if width and max(map(len, lines)) <= width)
    lines = whole[1] if width is None else next(fitting, forms[-1])  # tight: it may be shown later
    if lines not in whole:
        needed = max(map(len, whole[-1]))
        lines = [*lines, "The parts of memory and time are left out here: they need "
                 f"{needed} columns."]  # fmt: skip
    return "\n".join((*lines, *LEGEND))


def _lines(marks: Sequence[str], rows: Sequence[Sequence[str]], gap: str) -> list[str]:
    lines = align(rows, [False] * len(rows[0]), gap)
    return [f"{mark} {line}" for mark, line in zip(marks, lines, strict=True)]


def _cells(candidate: Candidate) -> tuple[str, ...]:
    plan, memory, time = candidate.plan, candidate.memory, candidate.time
    degrees = (
        "".join(
            f" {name}{value}"
            for name, value in (("tp", plan.tp), ("pp", plan.pp), ("sp", plan.sp))
            if value > 1 and not (name == "sp" and plan.replicas)
        )
        + (f" sp{_shared(plan)}" if plan.replicas else "")
        + (f" hpz{plan.hpz}" if plan.hpz > 1 else "")
    )
    parts = (
        memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.logits,
        memory.buffers, memory.reserve, memory.total, candidate.host_memory,
    )  # fmt: skip
    sizes = [f"{part / GIB:.1f}" for part in parts]
    seconds = [
        f"{part:.2f}" if part < 100 else f"{part:.0f}"
        for part in (time.compute, time.communication, time.pipeline, time.offload, time.total)
    ]
    return (
        f"{plan.zero}{degrees}", plan.recompute, plan.offload, str(plan.micro_tokens),
        str(plan.accumulation), "|", *sizes, "|", *seconds, "|", f"{candidate.tokens_per_s:.0f}",
        f"{candidate.mfu:.1%}",
    )  # fmt: skip


def _remarks(request: PlanRequest, choice: Choice) -> list[str]:
    rejected = ", ".join(f"{n} for {reason}" for reason, n in choice.rejected.items())
    remarks = [f"Rejected: {rejected}."] if rejected else []
    for text in (pin_cost(request, choice), scaling_warning(request, choice)):
        if text:
            remarks.append(f"Note: {text}.")
    gpu, other = request.cluster.gpu, request.implementation
    if request.precision == "bf16" and not gpu.has_bf16:
        remarks.append(
            f"Note: a {gpu.name} has no bf16: a run there needs --precision fp16 or fp32."
        )
    if choice.chosen is not None and other is not None and other.kernels == "fused":
        remarks.append("Note: predicted for fused kernels.")
    return remarks


def log_lines(choice: Choice) -> tuple[str, ...]:
    """Return the run's log lines about its plan, in the original platform's words."""
    counts = (
        f"The number of candidates is {len(choice.candidates)}.",
        f"The number of possible candidates is {len(choice.possible)}.",
    )
    if choice.chosen is None:
        return counts
    plan = choice.chosen.plan
    return (
        *counts,
        "Configuration for parallelism is selected.",
        f"{_degree('PP', plan.pp)}, {_degree('TP', plan.tp)}, "
        f"{f'SP : {_shared(plan)}, ' if plan.ranks > plan.dp else ''}"
        f"recomputation : {plan.recompute}, distribute_param : {_word(value=plan.zero > 0)}, "
        f"distribute_low_prec_param : {_word(value=plan.zero == 3)}",
        f"ZeRO stage : {plan.zero}, micro-batch : {plan.micro_tokens} tokens, "
        f"accumulation : {plan.accumulation}, offload : {plan.offload}"
        f"{f', hpZ : {plan.hpz}' if plan.hpz > 1 else ''}",
    )


def _shared(plan: Plan) -> str:
    """Return how many ranks share a row: `2`, `4+3`, or the range of many."""
    sizes = set(plan.sizes)
    return (
        plan.replicas
        if 1 < plan.dp <= SHOWN and plan.replicas
        else ("-".join(str(size) for size in sorted({min(sizes), max(sizes)})))
    )


def _degree(name: str, value: int) -> str:
    return f"No {name}" if value == 1 else f"{name} : {value}"


def _word(*, value: bool) -> str:
    return "true" if value else "false"


def describe_speeds(devices: Sequence[Device], speeds: Sequence[float]) -> Iterator[str]:
    """Say what work devices of different speeds get."""
    kinds = Counter(zip((device.name for device in devices), speeds, strict=False))
    if kinds:
        words = [f"{count} x {name} at {speed:.2f}" for (name, speed), count in kinds.items()]
        yield f"GPUs differ in speed ({', '.join(words)}): each replica gets work for its own"


def compare(candidate: Candidate, seconds: float, peak: float | None, reserved: float = 0.0) -> str:
    """Return predicted against measured in one line.

    Args:
        seconds: of one optimizer step.
        peak: bytes that torch's counter saw on a GPU; None where there is no such counter.
        reserved: bytes that torch took from the driver for them, where it tells.
    """
    time, memory = candidate.time.total, candidate.memory.total - candidate.memory.reserve
    found = f"predicted {time:.2f} s a step, measured {seconds:.2f} s ({_signed(seconds / time)})"
    if peak is None:
        return found
    return (
        f"{found}; predicted {memory / GIB:.2f} GiB, "
        f"measured {peak / GIB:.2f} GiB ({_signed(peak / memory)})"
        + (f", {reserved / GIB:.2f} GiB reserved" if reserved else "")
    )


def _signed(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.0f} %"
