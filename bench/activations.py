"""Activation memory: the planner's prediction against a trace of the real modules.

    python -m bench.activations [--json FILE]

Every configuration builds the Hugging Face model at its full width in fake-tensor mode (shapes
only, no data), runs one forward and backward pass with this project's loss and recomputation under
torch's MemTracker, and compares the peak of activations and temporaries. Gradients are there
already, as in every micro-batch but the first. Where a case has samples of a length, attention is
this project's own on the CPU; else one causal segment, of which a variable-length kernel keeps the
same.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from bench.record import table, write
from train.config import LoraConfig
from train.engine.attention import packed_attention
from train.engine.lora import DropoutContext, attach
from train.engine.loss import summed_cross_entropy
from train.engine.recompute import recompute
from train.planning.activations import Setting, peak
from train.planning.families import shape_of

DTYPES = {2: torch.bfloat16, 4: torch.float32}


@dataclass(frozen=True)
class Case:
    """One configuration: a family at some width, a micro-batch, a mode."""

    family: str
    sizes: dict[str, Any]
    tokens: int
    mode: str
    size: int = 2
    share: float = 1.0
    rank: int = 0
    layers: int = 6
    dropout: float = 0.0
    length: int = 0


MISTRAL = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
           "intermediate_size": 14336, "vocab_size": 32768}  # fmt: skip
LLAMA3 = MISTRAL | {"vocab_size": 128256}
LLAMA13 = {"hidden_size": 5120, "num_attention_heads": 40, "num_key_value_heads": 40,
           "intermediate_size": 13824, "vocab_size": 32000}  # fmt: skip
QWEN7 = {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4,
         "intermediate_size": 18944, "vocab_size": 152064}  # fmt: skip
QWEN05 = {"hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2,
          "intermediate_size": 4864, "vocab_size": 151936}  # fmt: skip
QWEN3 = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
         "intermediate_size": 12288, "vocab_size": 151936, "head_dim": 128}  # fmt: skip
GEMMA = {"hidden_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 16,
         "intermediate_size": 24576, "vocab_size": 256000, "head_dim": 256}  # fmt: skip
NEOX = {"hidden_size": 6144, "num_attention_heads": 64, "intermediate_size": 24576,
        "vocab_size": 50432}  # fmt: skip
PHI3 = {"hidden_size": 3072, "num_attention_heads": 32, "num_key_value_heads": 32,
        "intermediate_size": 8192, "vocab_size": 32064, "pad_token_id": 0}  # fmt: skip
PHI2 = {"hidden_size": 2560, "num_attention_heads": 32, "intermediate_size": 10240,
        "vocab_size": 51200}  # fmt: skip
OPT = {"hidden_size": 4096, "num_attention_heads": 32, "ffn_dim": 16384, "vocab_size": 50272,
       "word_embed_proj_dim": 4096, "max_position_embeddings": 8192}  # fmt: skip
STARCODER2 = {"hidden_size": 4608, "num_attention_heads": 36, "num_key_value_heads": 4,
              "intermediate_size": 18432, "vocab_size": 49152}  # fmt: skip
GEMMA2 = {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8,
          "intermediate_size": 4096, "vocab_size": 8192, "head_dim": 64,
          "sliding_window": 512}  # fmt: skip
SMALL = {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 4,
         "intermediate_size": 3584, "vocab_size": 8192}  # fmt: skip
OLMO2 = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 32,
         "intermediate_size": 11008, "vocab_size": 100352}  # fmt: skip

CASES = (
    Case("mistral", MISTRAL, 2048, "none"), Case("mistral", MISTRAL, 8192, "none"),
    Case("mistral", MISTRAL, 16384, "selective"), Case("mistral", MISTRAL, 8192, "full"),
    Case("mistral", MISTRAL, 32768, "full"), Case("mistral", MISTRAL, 4096, "none", share=0.3),
    Case("mistral", MISTRAL, 4096, "none", size=4),
    Case("mistral", MISTRAL, 4096, "none", rank=16),
    Case("mistral", MISTRAL, 8192, "selective", rank=16),
    Case("mistral", MISTRAL, 8192, "full", rank=64),
    Case("llama", LLAMA3, 4096, "none"), Case("llama", LLAMA3, 8192, "selective"),
    Case("llama", LLAMA3, 8192, "full"), Case("llama", LLAMA13, 4096, "none"),
    Case("llama", LLAMA13, 4096, "full", layers=12),
    Case("qwen2", QWEN7, 4096, "none"), Case("qwen2", QWEN7, 8192, "full"),
    Case("qwen2", QWEN05, 8192, "none", layers=24),
    Case("qwen2", QWEN05, 8192, "selective", layers=24, share=0.5),
    Case("qwen3", QWEN3, 4096, "none"), Case("qwen3", QWEN3, 4096, "selective"),
    Case("gemma", GEMMA, 2048, "none"), Case("gemma", GEMMA, 4096, "full"),
    Case("gemma", GEMMA, 4096, "selective"),
    Case("gpt_neox", NEOX, 4096, "none"), Case("gpt_neox", NEOX, 4096, "selective"),
    Case("gpt_neox", NEOX, 4096, "full"),
    Case("phi3", PHI3, 4096, "none"), Case("phi3", PHI3, 8192, "full"),
    Case("phi", PHI2, 4096, "none"), Case("phi", PHI2, 4096, "selective", layers=12),
    Case("opt", OPT, 4096, "none"), Case("opt", OPT, 4096, "full", layers=12),
    Case("starcoder2", STARCODER2, 4096, "none"),
    Case("starcoder2", STARCODER2, 4096, "selective"),
    Case("olmo2", OLMO2, 4096, "none"), Case("olmo2", OLMO2, 4096, "full"),
    Case("gemma2", GEMMA2, 4096, "none", layers=3, length=512),
    Case("gemma2", GEMMA2, 4096, "selective", layers=3, length=1024),
    Case("gemma2", GEMMA2, 4096, "full", layers=3, length=4096),
    Case("mistral", SMALL, 4096, "none", rank=16, layers=4, dropout=0.1),
    Case("mistral", SMALL, 4096, "selective", rank=16, layers=4, dropout=0.1),
    Case("mistral", SMALL, 4096, "full", rank=16, layers=4, dropout=0.1),
)  # fmt: skip


def segments(case: Case) -> Any:
    """Return this project's attention over samples of the case's length."""
    bounds = torch.arange(0, case.tokens + 1, case.length or case.tokens)

    def attend(*tensors: Any, **options: Any) -> Any:
        return packed_attention(
            *tensors, cu_seq_lens_q=bounds, max_length_q=case.length or case.tokens,
            **{key: options.get(key) for key in ("scaling", "sliding_window", "softcap")},
        )  # fmt: skip

    return attend


def causal(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
    """This project's attention for one segment: the variable-length kernel keeps the same."""
    grouped = query.shape[1] != key.shape[1]
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=options.get("scaling"), enable_gqa=grouped
    )
    return out.transpose(1, 2).contiguous(), None


def traced(case: Case) -> tuple[float, dict[str, Any]]:
    """Return the traced peak of activations and temporaries in bytes, and the model's config."""
    AttentionInterface.register("bench_causal", segments(case) if case.length else causal)
    context = DropoutContext()
    context.set_tokens(0, *(torch.zeros(case.tokens, dtype=torch.int64) for _ in range(2)))
    config = AutoConfig.for_model(
        case.family, use_cache=False, num_hidden_layers=case.layers, **case.sizes
    )
    for name, value in vars(config).items():
        if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
            setattr(config, name, 0.0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=DTYPES[case.size], attn_implementation="bench_causal"
        )
        if case.rank:
            model = _adapted(model, case, context)
    model.train()
    recompute(model, case.mode)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _materialise(model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
        tracker = MemTracker()
        tracker.track_external(model)
        with tracker:
            _step(model, case)
        snapshot = next(iter(tracker.get_tracker_snapshot("peak").values()))
    found = {str(key).rsplit(".", 1)[-1]: value for key, value in snapshot.items()}
    return float(found["ACT"] + found["TEMP"]), config.to_dict()


def _adapted(model: Any, case: Case, context: DropoutContext) -> Any:
    adapter = LoraConfig(case.rank, 2 * case.rank, case.dropout)
    # On the meta device peft leaves its matrices in fp32; a loaded model's are in its own type.
    return attach(model, adapter, 0, context).to(model.dtype)


def _materialise(model: Any) -> None:
    """Give every tensor of a model on the meta device a fake one on the CPU; ties stay.

    A frozen parameter becomes a buffer, because the tracker wants gradients of every parameter.
    """
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, value in list(module._parameters.items()):
            if value is None:
                continue
            fake = torch.empty(value.shape, dtype=value.dtype)
            if value.requires_grad:
                parameter = made.setdefault(id(value), torch.nn.Parameter(fake))
                module._parameters[name] = parameter
            else:
                del module._parameters[name]
                module._buffers[name] = fake
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = torch.empty(value.shape, dtype=value.dtype)


def _step(model: Any, case: Case) -> None:
    rows = round(case.share * case.tokens)
    logits = model(
        input_ids=torch.zeros(1, case.tokens, dtype=torch.int64),
        position_ids=torch.arange(case.tokens)[None],
        logits_to_keep=torch.arange(rows),
        use_cache=False,
    ).logits
    flat = logits.reshape(-1, logits.shape[-1])
    loss, _ = summed_cross_entropy(flat, torch.zeros(rows, dtype=torch.int64), 1.0)
    del logits, flat
    loss.backward()


def expected(case: Case, config: dict[str, Any]) -> float:
    """Return the planner's peak of the case, in bytes."""
    shape = shape_of(config)
    setting = Setting(
        size=case.size, adapter=case.rank, dropout=case.dropout > 0,
        dense=case.length if shape.softcap else 0, longest=case.length, repeats=shape.softcap,
    )  # fmt: skip
    return sum(peak(shape, setting, case.mode, case.tokens, case.share))


def main(argv: list[str]) -> int:
    """Trace every case, print the table and the summary, write the results."""
    rows = []
    for case in CASES:
        measured, config = traced(case)
        predicted = expected(case, config)
        rows.append({
            "family": case.family, "hidden": config.get("hidden_size", 0), "layers": case.layers,
            "tokens": case.tokens, "recompute": case.mode, "bytes": case.size,
            "loss_share": case.share, "rank": case.rank, "measured_gib": measured / 2**30,
            "predicted_gib": predicted / 2**30, "error_percent": 100 * (predicted / measured - 1),
        })  # fmt: skip
    errors = [abs(row["error_percent"]) for row in rows]
    summary = {
        "cases": len(rows),
        "mean_error_percent": sum(errors) / len(errors),
        "worst_error_percent": max(errors),
    }
    print(table(rows))
    print(summary)
    write("activations", rows, summary)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
