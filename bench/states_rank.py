"""One rank of `bench/states.py`: two real steps, then the bytes of every live tensor by owner."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig

from train.config import ModelConfig, OptimizerConfig
from train.planning import DsConfig, Plan, render, shape_of

SIZES = {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8,
         "num_key_value_heads": 4, "intermediate_size": 1536, "vocab_size": 4096}  # fmt: skip


def main(argv: list[str]) -> None:
    """Run one case, `ZERO PRECISION FOLDER`, and write `rank<i>.json` into the folder."""
    zero, precision, folder = int(argv[1]), argv[2], Path(argv[3])
    deepspeed.init_distributed(dist_backend="gloo")
    ranks = torch.distributed.get_world_size()
    config = AutoConfig.for_model("mistral", use_cache=False, **SIZES)
    model_config = ModelConfig(None, None, precision, None, False)
    optimizer = OptimizerConfig(1e-4, "constant", 0, 0.0, 1.0)
    rendered = render(
        Plan(zero, 256, dp=ranks), shape_of(config.to_dict()), model_config, optimizer, DsConfig()
    )
    engine = _engine(config, rendered, precision)
    for step in range(2):
        for micro in range(2):
            engine.set_gradient_accumulation_boundary(micro == 1)
            loss = engine(input_ids=torch.zeros(1, 16, dtype=torch.int64)).logits.float().sum()
            engine.backward(loss * 1e-6, scale_wrt_gas=False)
            del loss
        if step == 0:
            engine.step()
    found = _bytes(engine)
    (folder / f"rank{torch.distributed.get_rank()}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _engine(config: Any, rendered: dict[str, Any], precision: str) -> Any:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    keep = HfDeepSpeedConfig(rendered) if rendered["zero_optimization"]["stage"] == 3 else None
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    del keep
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=rendered)
    return engine


def _bytes(engine: Any) -> dict[str, int]:
    """Return the bytes of live storages, each counted once, by what they hold."""
    gc.collect()
    seen: set[int] = set()
    states = _storages(_tensors(engine.optimizer.state if engine.optimizer else {}))
    owners = {
        "weights": _storages(_weights(engine.module)),
        "optimizer": states | _storages(_masters(engine.optimizer)),
    }
    owners["gradients"] = _storages(_gradients(engine))
    found: dict[str, int] = {}
    for name, storages in owners.items():
        fresh = {key: size for key, size in storages.items() if key not in seen}
        seen |= fresh.keys()
        found[name] = sum(fresh.values())
    others = _storages(x for x in gc.get_objects() if isinstance(x, torch.Tensor))
    found["buffers"] = sum(size for key, size in others.items() if key not in seen)
    return found


def _weights(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    for parameter in module.parameters():
        yield parameter.data
        if hasattr(parameter, "ds_tensor"):
            yield parameter.ds_tensor


def _masters(optimizer: Any) -> Iterator[torch.Tensor]:
    names = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat",
             "fp32_groups_flat_partition")  # fmt: skip
    for name in names:
        yield from _tensors(getattr(optimizer, name, ()))
    for group in getattr(optimizer, "param_groups", ()):
        yield from _tensors(group["params"])


def _gradients(engine: Any) -> Iterator[torch.Tensor]:
    names = ("averaged_gradients", "fp32_groups_gradients_flat", "all_grad_tensors",
             "grad_partitions_flat_buffer", "fp32_groups_gradient_flat_partition")  # fmt: skip
    for name in names:
        yield from _tensors(getattr(engine.optimizer, name, ()))
    for tensor in (*engine.module.parameters(), *_masters(engine.optimizer)):
        yield from _tensors((tensor.grad, getattr(tensor, "grad_accum", None)))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    found = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if tensor.device.type == "cpu" and storage.nbytes():
            found[storage.data_ptr()] = storage.nbytes()
    return found


if __name__ == "__main__":
    words = [word for word in sys.argv if not word.startswith("--local_rank")]
    main(words)
