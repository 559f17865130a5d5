"""Where generation from a saved model stops: wherever what was trained has ended.

A base model's generation_config.json stops at its own last token only. Trained on conversations,
the model ends its turns as the chat template does, and would go on for ever.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from train.data.tokenizer import Tokenizer

PROBE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
KEPT = ("bos_token_id", "pad_token_id")  # of config.json, where there is no generation_config.json
FILE = "generation_config.json"


def settle_stops(base: Path, folder: Path, tokenizer: Tokenizer) -> str:
    """Add the tokens that end samples and turns to those at which the saved model stops.

    Args:
        base: the model that was trained from.
        folder: of the saved model, or of its adapter.

    Returns:
        A sentence about what was added; empty where nothing was.
    """
    config = _content(base / "config.json")
    text = config.get("text_config")
    said = _content(base / FILE) or {
        key: value
        for key, value in (config | (text if isinstance(text, dict) else {})).items()
        if key in (*KEPT, "eos_token_id") and value is not None
    }
    own = said.get("eos_token_id")
    known = own if isinstance(own, list) else [] if own is None else [own]
    more = [number for number in ends(tokenizer) if number not in known]
    if not more:
        return ""
    content = json.dumps(said | {"eos_token_id": [*known, *more]}, indent=2) + "\n"
    (folder / FILE).write_text(content, encoding="utf-8")
    names = " and ".join(repr(tokenizer.spelling([number])) for number in more)
    return (
        f"what was trained ends in {names}, where the base model does not stop: the saved {FILE} "
        f"says so, as eos_token_id={[*known, *more]}"
    )


def ends(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that end a sample, and a turn by the chat template."""
    found = [] if tokenizer.info.eos is None else [tokenizer.info.eos]
    try:
        segments = tokenizer.chat(PROBE) or ()
    except ValueError:  # a template that wants other conversations: its samples end in what it says
        segments = ()
    carried = [text for text, loss in segments if loss]
    name = tokenizer.ends_turn(carried[-1]) if carried else None
    ids = tokenizer.encode(name) if name else []
    return found + [number for number in ids[:1] if number not in found]


def _content(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
