"""Rows of a prompt, a chosen and a rejected answer: read as pairs, drawn and packed as one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from train.config import DataConfig, ModelConfig
from train.data.feed import Placement, step_batch
from train.data.open import open_dataset
from train.data.pairs import ANSWERS, PairedSplit, answer_rows
from train.data.rows import Row
from train.errors import DataError

PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
ASKED, SAID = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def read(*values):
    return list(answer_rows(Row(f"a:{n}", value) for n, value in enumerate(values)))


def test_a_row_becomes_its_prompt_with_each_answer():
    first, second = read({"prompt": "p", "chosen": "c", "rejected": "r", "system": "s", "id": 3})
    assert first.value == {"prompt": "p", "completion": "c", "system": "s"}
    assert second.value == {"prompt": "p", "completion": "r", "system": "s"}
    assert first.beside == ("id",)


def test_the_prompt_is_found_by_the_names_that_others_give_it():
    row = {"instruction": "p", "input": "i", "chosen": "c", "rejected": "r"}
    assert read(row)[1].value == {"prompt": "p", "completion": "r", "input": "i"}
    asked = [{"from": "human", "value": "p"}]
    ends = [{"from": "gpt", "value": word} for word in "cr"]
    (first, _) = read({"conversations": asked, "chosen": ends[0], "rejected": ends[1]})
    assert first.value == {"prompt": asked, "completion": ends[:1]} and first.beside == ()


@pytest.mark.parametrize(
    ("row", "value"),
    [
        ({"Question": "p", "system_prompt": "s", "context": "i"},
         {"prompt": "p", "system": "s", "input": "i"}),
        ({"prompt": "p", "functions": [{"name": "f"}]}, {"prompt": "p", "tools": [{"name": "f"}]}),
        ({"messages": [{"role": "user", "content": "p"}]},
         {"prompt": [{"role": "user", "content": "p"}]}),
    ],
)  # fmt: skip
def test_what_goes_with_a_prompt_is_kept_by_all_the_names_that_it_has_elsewhere(row, value):
    first, _ = read({**row, "Chosen": "c", "rejected": "r"})
    assert first.value == {**value, "completion": "c"} and first.beside == ()


def test_turns_are_read_in_every_form_that_answers_have():
    asked = [{"role": "user", "content": "p"}]
    ends = [{"role": "assistant", "content": word} for word in "cr"]
    wanted = {"prompt": asked, "completion": ends[:1]}
    for form in (lambda turn: turn, json.dumps, lambda turn: json.dumps([turn])):
        row = {"messages": asked, "chosen": form(ends[0]), "rejected": form(ends[1])}
        assert read(row)[0].value == wanted
    whole = {name: json.dumps([*asked, end]) for name, end in zip(ANSWERS, ends, strict=True)}
    assert read(whole)[0].value == wanted
    assert read({"messages": [*asked, ends[0]], **whole})[0].value == wanted


def test_messages_before_what_both_answers_begin_with_stay_before_it():
    turns = [{"role": role, "content": word} for role, word in
             zip(["user", "assistant", "user"], "abc", strict=True)]  # fmt: skip
    ends = {name: [*turns[1:], {"role": "assistant", "content": name}] for name in ANSWERS}
    assert read({"messages": turns[:1], **ends})[0].value["prompt"] == turns


def test_a_pair_of_which_one_text_is_bad_is_left_out_whole(pieces, tmp_path):
    """The texts after it were paired one off: a good answer against another prompt's."""
    rows = [
        {"prompt": [{"role": "user", "content": f"word {n}"}],
         "chosen": [{"role": "assistant", "content": "yes"}],
         "rejected": [{"role": "nobody" if n in (1, 3) else "assistant", "content": "no"}]}
        for n in range(8)
    ]  # fmt: skip
    rows[5]["rejected"] = rows[5]["chosen"]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))  # all in one line
    config = DataConfig(str(path), None, True, 2, 64, 3, objective="dpo")
    model = ModelConfig("unused", str(pieces), "fp32", None, False, "chatml")
    found = open_dataset(config, model, tmp_path / "cache")
    assert len(found.train) + len(found.validation) == 6
    for split in (found.train, found.validation):
        for number in range(len(split)):
            first, second = (list(ids[~mask.astype(bool)]) for ids, mask in split.texts(number))
            assert first == second  # the same prompt
    assert any("in 1 pairs the chosen and the rejected answer are the same" in n
               for n in found.notices)  # fmt: skip


def test_whole_conversations_part_at_their_last_turns():
    shared = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
              {"role": "user", "content": "c"}]  # fmt: skip
    ends = [[{"role": "assistant", "content": word}] for word in "xy"]
    found = read({"prompt": "a", "chosen": shared + ends[0], "rejected": shared + ends[1]})
    assert [row.value for row in found] == [
        {"prompt": shared, "completion": ends[0]},
        {"prompt": shared, "completion": ends[1]},
    ]


def test_a_prompt_that_both_conversations_lack_stands_before_them():
    ask, more = {"role": "user", "content": "a"}, {"role": "user", "content": "c"}
    shared = [{"role": "assistant", "content": "b"}, more]
    ends = [[{"role": "assistant", "content": word}] for word in "xy"]
    answers = {"chosen": shared + ends[0], "rejected": shared + ends[1]}
    assert read({"prompt": [ask], **answers})[0].value["prompt"] == [ask, *shared]
    whole = {name: [ask, *turns] for name, turns in answers.items()}
    assert read({"prompt": [ask], **whole})[0].value["prompt"] == [ask, *shared]
    for prompt in ("another question", [more]):
        (found,) = read({"prompt": prompt, **answers})
        assert found.value is None and "leave either out" in found.problem


def test_pairs_of_several_datasets_stay_pairs_where_each_has_one_alone(pieces, tmp_path):
    """Held out text by text, the chosen answers of two datasets became a pair."""
    names = []
    for name in "ab":
        row = {"prompt": f"{name * 3} it is", "chosen": f"well {name}", "rejected": f"no {name}"}
        (tmp_path / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 3)
        names.append(str(tmp_path / f"{name}.jsonl"))
    config = DataConfig(",".join(names), None, False, 2, 64, 3, objective="dpo")
    model = ModelConfig("unused", str(pieces), "fp32", None, False)
    found = open_dataset(config, model, tmp_path / "cache")
    assert (len(found.train), len(found.validation)) == (4, 2)
    begun = set()
    for split in (found.train, found.validation):
        for number in range(len(split)):
            first, second = ([int(t) for t in ids[~mask.astype(bool)]]
                             for ids, mask in split.texts(number))  # fmt: skip
            assert first[:3] == second[:3]  # the prompts' own beginnings
            begun.add(tuple(first[:3]))
    assert len(begun) == 2


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "chosen": "c"}, "rejected is missing or empty"),
        ({"prompt": "p", "chosen": "c", "rejected": ""}, "rejected is missing or empty"),
        ({"chosen": "c", "rejected": "r"}, "needs a prompt beside"),
        ({"prompt": "p", "chosen": "c", "rejected": [{}]}, "must both be texts"),
        ({"prompt": "p", "completion": "c"}, "found prompt, completion"),
        ({**PAIR, "weight": 0}, "'weight' is 0, but all rows count alike: leave the row out"),
        ({**PAIR, "system": "a", "system_prompt": "b"}, "system, system_prompt could each be the"),
        ({**PAIR, "prompt": "<image>p", "images": ["a"]}, "refers to what 'images' holds"),
        (
            {**PAIR, "chosen": [ASKED, SAID], "rejected": [{**ASKED, "content": "q"}, SAID]},
            "chosen begins with the user's turn, which the other answer has not",
        ),
        ({**PAIR, "prompt": [ASKED, SAID]}, "the prompt ends in an answer"),
        (
            {
                "messages": [ASKED],
                "chosen": [{**ASKED, "content": "q"}, SAID],
                "rejected": [{**ASKED, "content": "q"}, {**SAID, "content": "s"}],
            },
            "leave either out",
        ),
    ],
)
def test_other_rows_are_refused(row, said):
    (found,) = read(row)
    assert found.value is None and said in found.problem


def test_pairs_are_drawn_held_out_and_packed_as_one(pieces, tmp_path):
    rows = [
        {"prompt": f"say {n}", "chosen": f"well: {n}", "rejected": f"no {n * n} " * (n % 3 + 1)}
        for n in range(60)
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(str(data), None, False, 7, 64, 3, objective="dpo")
    model = ModelConfig("unused", str(pieces), "fp32", None, False)
    found = open_dataset(config, model, tmp_path / "cache")
    train = found.train
    assert isinstance(train, PairedSplit) and len(train) + len(found.validation) == 60
    assert any(notice.startswith("--objective dpo: ") for notice in found.notices)
    said = "pairs are a prompt with 'chosen' and 'rejected' joined as they are; the loss is on both"
    assert said in found.notices and found.forms == (said,)
    place = Placement(replica=0, replicas=1, capacity=2 * int(train.lengths.max()))
    batch = step_batch(train, 3, 7, 0, place)
    assert (batch.samples, batch.terms) == (7, 7)
    seen = []
    for micro in batch.micros:
        ids = micro.samples[np.cumsum([0, *micro.lengths[:-1]])]
        assert (ids[::2] == ids[1::2]).all()
        assert micro.terms == len(micro.reference) == len(ids) // 2
        seen += ids[::2].tolist()
    assert len(set(seen)) == 7
    chosen, rejected = train.texts(seen[0])
    assert (chosen[0][: int(chosen[1].argmax())] == rejected[0][: int(rejected[1].argmax())]).all()
    data.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(DataError, match="gives 1 sample, but 2 are needed"):
        open_dataset(config, model, tmp_path / "cache")
