"""Let a saved model speak: it is loaded back from its folder, as a user would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM


def generate(folder: Path, ids: list[int], eos: int | None, most: int = 120) -> list[int]:
    """Continue the prompt `ids` with the model saved in `folder`, on the CPU, by a fixed draw.

    Returns:
        The new ids, at most `most`, up to and without `eos`.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    model.eval()
    torch.manual_seed(0)
    prompt = torch.tensor([ids])
    with torch.no_grad():
        found = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=most,
            do_sample=True,
            temperature=0.7,
            top_k=40,
            eos_token_id=eos,
            pad_token_id=eos,
        )
    new: list[int] = found[0, len(ids) :].tolist()
    return new[: new.index(eos)] if eos in new else new
