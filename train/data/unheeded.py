"""What a row says of itself, or holds beside what is read, that no training would heed: refused."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

from train.data.column_names import NAMES, plain_name, spelt
from train.data.row_format import RowFormat, named
from train.data.turns import listed_turns
from train.text import printable

# What a row is to count, or whether it is to be trained on, or (`no`) is not.
WEIGHT = re.compile(
    r"(sample_|loss_|row_)?weights?|((is|do)_)?(train(able|ing)?|keep)|loss_mask"
    r"|(is_)?(?P<no>ignored?|skip(ped)?|deleted?|excluded?|masked|no_loss)"
)
# What stands beside texts that refer to it.
MEDIA = re.compile(r"(images?|pictures?|videos?|audios?)(_.*)?")
REFERRED = re.compile(r"(?i)<\|?(image|video|audio)(_pad|_?\d+)?\|?>")


def require_heeded(form: RowFormat, row: Mapping[str, Any]) -> None:
    """Check that a row does not ask for what no run does; see `unheeded`.

    Raises:
        ValueError: it does.
    """
    if not form.given and (said := unheeded(row, form.unused)):
        raise ValueError(
            f"{said}: leave the row out, or give --columns {named(form)} to train it all the same"
        )


def unheeded(row: Mapping[str, Any], unused: Collection[str]) -> str:
    """Return what a row asks for in vain by columns that are not used, in words, or nothing.

    That is to count for less than others, or to be seen with the media that its texts refer to.
    """
    for name in unused:
        kind, held = _kind(name), row.get(name)
        if kind in ("weight", "no weight") and _is_less(held, full=kind == "weight"):
            return f"'{name}' is {printable(str(held), 40)}, but all rows count alike"
        if held and kind == "media":
            used = (str(row[column]) for column in row if column not in unused)
            if any(map(REFERRED.search, used)):
                return f"a text refers to what '{name}' holds, but nothing else than texts is read"
    return ""


@lru_cache(maxsize=4096)
def _kind(name: str) -> str:
    """Return what a column says of its row: weight, no weight, media, or nothing."""
    known = WEIGHT.fullmatch(plain_name(name))
    if known is None:
        return "media" if MEDIA.fullmatch(plain_name(name)) else ""
    return "weight" if known["no"] is None else "no weight"


def _is_less(value: Any, *, full: bool) -> bool:
    """Whether a weight, or one of a list of them, is another than that of a row that counts."""
    held = [spelt(one) for one in (value if isinstance(value, list) else [value])]
    return any(isinstance(one, int | float) and one != full for one in held)


def refuse_answer_beside(form: RowFormat, row: Mapping[str, Any]) -> None:
    """Refuse a conversation that ends in no answer, where it stands in another column.

    Raises:
        ValueError: it names that column.
    """
    for name in () if form.given else form.unused:
        held = row.get(name)
        if plain_name(name) in NAMES["completion"] and held not in (None, "", [], {}):
            read = dict(form.roles)
            asked = read.pop("messages")
            both = named(RowFormat({"prompt": asked, "completion": name, **read}))
            readable = isinstance(held, str) or listed_turns(held)
            pair = f"give --columns {both}" if readable else f"write '{name}' as a text"
            raise ValueError(
                f"'{asked}' ends in no answer, and '{name}' beside it would be left out: {pair}, "
                f"or give --columns {named(form)} to train without it"
            )
