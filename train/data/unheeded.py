"""What a row says of itself, or holds beside what is read, that no training would heed: refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from train.data.columns import NAMES, RowFormat, named, plain_name, spelt

# What a row is to count, or whether it is to be trained on, or (`no`) is not.
WEIGHT = re.compile(
    r"(sample_|loss_|row_)?weights?|(is_)?train(able)?|loss_mask"
    r"|(?P<no>ignored?|skip(ped)?|deleted|excluded?)"
)


def require_weight(form: RowFormat, row: Mapping[str, Any]) -> None:
    """Check that a row does not ask to count for less than others.

    Raises:
        ValueError: it does; all rows count alike.
    """
    for name in () if form.given else form.unused:
        if counts_for_less(name, row.get(name)):
            raise ValueError(
                f"'{name}' is {row.get(name)}, but all rows count alike: leave the row out, or "
                f"give --columns {named(form)} to train it all the same"
            )


def counts_for_less(name: str, value: Any) -> bool:
    """Whether a column says that its row, or a part of that, is to count otherwise than others."""
    known = WEIGHT.fullmatch(plain_name(name))
    held = [spelt(one) for one in (value if isinstance(value, list) else [value])]
    return known is not None and any(
        isinstance(one, int | float) and one != (known["no"] is None) for one in held
    )


def refuse_answer_beside(form: RowFormat, row: Mapping[str, Any]) -> None:
    """Refuse a conversation that ends in a question, whose answer stands in another column.

    Raises:
        ValueError: it names that column.
    """
    for name in () if form.given else form.unused:
        if plain_name(name) in NAMES["completion"] and isinstance(row.get(name), str) and row[name]:
            read = dict(form.roles)
            asked = read.pop("messages")
            both = named(RowFormat({"prompt": asked, "completion": name, **read}))
            raise ValueError(
                f"'{asked}' ends in a question, and '{name}' beside it would be left out: give "
                f"--columns {both}, or --columns {named(form)} to train without it"
            )
