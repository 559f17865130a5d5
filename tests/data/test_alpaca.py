"""Alpaca rows where a tokenizer has no chat template: the saved one gets one that writes them."""

import pytest

from train.config import ModelConfig
from train.data.alpaca import TOLD
from train.data.tokenizers import load_tokenizer

ROWS = [
    {"instruction": f"hello {n}", "output": "the world", "system": "", "history": []}
    for n in range(6)
]
ROWS += [
    {"instruction": "hello world", "output": "the fox", "system": "Write User:",
     "history": [["the quick", "brown"], ["lazy", "dog"]]},
]  # fmt: skip


def talk(row):
    turns = [*row["history"], (row["instruction"], row["output"])]
    system = [{"role": "system", "content": row["system"]}] if row["system"] else []
    said = zip(("user", "assistant") * len(turns), (text for turn in turns for text in turn),
               strict=True)  # fmt: skip
    return [*system, *({"role": role, "content": text} for role, text in said)]


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["pieces", "chatml"])
def test_the_saved_template_writes_what_was_trained(kind, opened, write, request, tmp_path):
    from transformers import AutoTokenizer

    named = request.getfixturevalue(kind)
    none = "none" if kind == "chatml" else None
    path = write(ROWS)
    data = opened(path, named, template=none)
    assert TOLD in data.notices
    assert "written with the alpaca template; the loss is on 'output'" in data.forms[0]
    saved = tmp_path / "saved"
    saved.mkdir()
    load_tokenizer(ModelConfig(None, str(named), "fp32", None, False, none)).save(saved)
    (saved / "chat_template.jinja").write_text(data.chat_template)
    theirs = AutoTokenizer.from_pretrained(saved)
    held = opened(path, named, template=none, eval_name_or_path=str(path)).validation
    for number, row in enumerate(ROWS):
        ids = theirs.apply_chat_template(talk(row), return_dict=False)
        assert ids == held.sample(number)[0].tolist()
        asked = theirs.apply_chat_template(
            talk(row)[:-1], add_generation_prompt=True, tokenize=False
        )
        assert asked.endswith("### Response:\n")
    again = opened(path, saved, eval_name_or_path=str(path))
    assert "written with the chat template" in again.forms[0] and again.chat_template is None
    assert [again.validation.sample(n)[0].tolist() for n in range(7)] == [
        held.sample(n)[0].tolist() for n in range(7)
    ]


def test_rows_that_are_written_in_two_ways_are_counted(opened, write, pieces):
    """Only how the first was written was said."""
    rows = [{"prompt": "the fox\n", "context": "lazy dog", "completion": "brown"}] * 2
    rows += [{"prompt": f"hello {n}\n", "completion": "world"} for n in range(4)]
    (form,) = opened(write(rows), pieces).forms
    assert "written with the alpaca template (2 rows) or joined as they are (4 rows)" in form
    (form,) = opened(write(rows[2:], "b.jsonl"), pieces).forms
    assert form.endswith("joined as they are; the loss is on 'completion'")
