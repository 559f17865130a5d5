"""Which columns are used, and what is refused rather than trained otherwise than the row says."""

import pytest

from train.data.columns import choose_format
from train.data.row_format import richer
from train.data.unheeded import require_heeded
from train.errors import DataError

TURNS = [{"role": "user", "content": "a"}]
ANSWER = [{"role": "assistant", "content": "b"}]


def chosen(row, loss_on=None, **columns):
    return choose_format(row, columns, loss_on, "f, line 1")


@pytest.mark.parametrize(
    "row, kind, roles",
    [
        ("messages id", "messages", "messages=messages"),
        ("conversations system tools", "messages",
         "messages=conversations system=system tools=tools"),
        ("messages prompt prompt_id", "messages", "messages=messages"),
        ("prompt completion", "completion", "prompt=prompt completion=completion"),
        ("Prompt Answer", "completion", "prompt=Prompt completion=Answer"),
        ("question answer", "completion", "prompt=question completion=answer"),
        ("query response", "completion", "prompt=query completion=response"),
        ("input output", "completion", "prompt=input completion=output"),
        ("system_prompt question response", "completion",
         "prompt=question completion=response system=system_prompt"),
        ("instruction input output text", "completion",
         "prompt=instruction completion=output input=input"),
        ("instruction input output prompt", "completion",
         "prompt=instruction completion=output input=input"),
        ("instruction context response category", "completion",
         "prompt=instruction completion=response input=context"),
        ("instruction output system history", "completion",
         "prompt=instruction completion=output system=system history=history"),
        ("prompt completion score reward", "completion", "prompt=prompt completion=completion"),
        ("text id url", "text", "text=text"),
        ("prompt prompt_id", "prompt", "prompt=prompt"),
    ],
)  # fmt: skip
def test_columns_have_roles_by_their_names(row, kind, roles):
    form = chosen(dict.fromkeys(row.split(), "a"))
    assert (form.kind, form.roles) == (kind, dict(pair.split("=") for pair in roles.split()))
    assert set(form.unused) == set(row.split()) - set(form.roles.values())


@pytest.mark.parametrize(
    "row, words",
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"},
         "chosen, rejected .*--objective dpo.* prompt=prompt,completion=chosen "),
        ({"chosen": TURNS, "rejected": TURNS}, "--columns messages=chosen "),
        ({"chosen": "a", "rejected": "b"}, "--columns text=chosen "),
        ({"chosen": "a", "rejected": "b", "score_chosen": 8.0}, ": chosen, rejected are answers"),
        ({"Who?": "Why?", "I.": "So."}, "put a line with their names above the rows$"),
        ({"messages": TURNS, "chosen": TURNS, "rejected": TURNS}, "--columns messages=chosen "),
        ({"prompt": "a", "chosen": TURNS, "rejected": TURNS}, "--columns messages=chosen "),
        ({"prompt": "a", "answer": "b", "rejected": "c"}, "--columns prompt=prompt,completion=ans"),
        ({"prompt": "a", "rejected": "c"}, "--columns prompt=prompt,completion=COLUMN "),
        ({"input": TURNS, "preferred_output": ANSWER, "non_preferred_output": ANSWER},
         "prompt=input,completion=preferred_output "),
        ({"question": "a", "response_j": "b", "response_k": "c"}, "completion=response_j "),
        ({"prompt": "a", "response_0": "b", "response_1": "c", "better_response_id": 1}, "answers"),
        ({"prompt": "a", "completion": "b", "label": False}, "'label' judges the answer"),
        ({"messages": TURNS, "label": 1}, "'label' judges the answer"),
        ({"prompt": "a", "completion": "b", "kto_tag": True}, "'kto_tag' judges"),
        ({"prompt": "a", "completion": "b", "label": "False"}, "'label' judges"),
        ({"text": "a", "role": "prompter"}, "what the 'role' beside it says .* --columns text=te"),
        ({"dialogue": "A: a", "summary": "b"}, "--columns prompt=dialogue,completion=summary"),
        ({"prompt": "a", "completions": ["b"], "scores": [1]}, "it: give --columns text=prompt to"),
        ({"prompt": "a", "responses": [], "ranking": [1]}, "'responses' stands beside it"),
        ({"prompt": "a", "Antwort": "b"}, "--columns prompt=prompt,completion=Antwort, or "),
        ({"prompt": "a", "note": "b"}, "--columns text=prompt to train it alone"),
        ({"prompt": "a", "output": "b", "context": "c", "input": "d"},
         "context, input could each be the input: .*prompt=prompt,completion=output,input=context"),
        ({"text": "a", "summary": "b"}, "'text' alone would be trained"),
        ({"text": "a", "label": "b"}, "prompt=text,completion=label"),
        ({"question": "a", "context": "b", "answers": {"text": ["c"]}}, "--columns text=question"),
        ({"prompt": "a", "context": "b", "answers": ["c"]}, "'context' stands beside it"),
        ({"prompt": "a", "answer": "b", "solution": "c"}, "answer, solution could each be"),
        ({"Frage": "a", "Antwort": "b", "Quelle": "c"},
         "found Frage, Antwort, Quelle, .*--columns prompt=Frage,completion=Antwort"),
        ({"id": "1", "source": "a", "target": "b"}, "--columns prompt=source,completion=target"),
        ({"talk": TURNS, "id": "1"}, "--columns messages=talk"),
        ({"content": "a"}, "--columns text=content"),
        ({"question": "a"}, "found question, but needed .* --columns text=question"),
        ({"input": "a", "instruction": "b"}, "found input, instruction, but needed"),
        ({"text": "a", "answer": 4}, "'text' alone would be trained, though 'answer' stands"),
        ({"text": "a", "answer": 4}, "write 'answer' as a text, or give --columns text=text "),
        ({"text": "a", "response": True}, "'text' alone would be trained, though 'response'"),
        ({"conversations": TURNS, "chosen": ANSWER[0], "rejected": ANSWER[0]},
         "takes one answer, which is a text or a list of turns$"),
        ({"conversations": TURNS, "chosen": "b", "rejected": "c"},
         "prompt=conversations,completion=chosen "),
        ({"conversations": [*TURNS, *ANSWER], "chosen": "b", "rejected": "c"}, "text=chosen "),
        ({"prompt": "a", "chosen": str([*TURNS, *ANSWER]).replace("'", '"'), "rejected": "[]"},
         "--columns messages=chosen "),
        ({}, "found none"),
    ],
)  # fmt: skip
def test_what_would_train_something_else_is_refused(row, words):
    with pytest.raises(DataError, match=words) as caught:
        chosen(row)
    assert str(caught.value).startswith("f, line 1: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "mark, counts",
    [({"weight": 0}, False), ({"weight": 1.0}, True), ({"Sample-Weight": 0.5}, False),
     ({"train": False}, False), ({"train": True}, True), ({"ignore": True}, False),
     ({"ignore": 0}, True), ({"weight": "heavy"}, True), ({"weight": None}, True),
     ({"loss_mask": [1, 0]}, False), ({"loss_mask": [1, 1]}, True), ({"is_train": False}, False),
     ({"deleted": True}, False), ({"deleted": False}, True), ({"Is Skipped": "true"}, False),
     ({"exclude": 0}, True), ({"keep": 0}, False), ({"train": "set"}, True),
     ({"weight": "0.0"}, False), ({"weight": " 1 "}, True), ({"train": "False"}, False)],
)  # fmt: skip
def test_a_row_that_asks_to_count_for_less_is_refused(mark, counts):
    row = {"prompt": "a", "completion": "b", **mark}
    require_heeded(chosen(row, prompt="prompt", completion="completion"), row)
    if counts:
        require_heeded(chosen(row), row)
        return
    with pytest.raises(ValueError, match="all rows count alike: .*prompt=prompt,completion=comp"):
        require_heeded(chosen(row), row)


def test_a_text_that_refers_to_an_image_is_not_trained_without_it():
    row = {"messages": [{**TURNS[0], "content": "<image>What?"}, *ANSWER], "images": ["a.png"]}
    with pytest.raises(ValueError, match="a text refers to what 'images' holds, but nothing else"):
        require_heeded(chosen(row), row)
    for other in ({**row, "images": []}, {**row, "messages": [*TURNS, *ANSWER]}):
        require_heeded(chosen(other), other)
    require_heeded(chosen(row, messages="messages"), row)


def test_a_class_or_a_score_beside_a_text_is_named_as_unused():
    assert chosen({"text": "a", "label": 1, "target": 2}).unused == ("label", "target")


def test_given_columns_are_used_alone():
    row = {"Frage": "a", "Antwort": "b", "Quelle": "c", "system": "d"}
    form = chosen(row, prompt="Frage", completion="Antwort")
    assert form.kind == "completion" and form.unused == ("Quelle", "system")
    form = chosen(
        {"prompt": "a", "chosen": "b", "rejected": "c"}, instruction="prompt", output="chosen"
    )
    assert form.roles == {"prompt": "prompt", "completion": "chosen"} and form.alpaca
    assert chosen({"prompt": "a", "note": "b"}, text="prompt").kind == "text"
    assert chosen({"Frage": "a", "id": "b"}, prompt="Frage").kind == "prompt"


@pytest.mark.parametrize(
    "roles", ["text system", "text prompt", "messages history", "messages prompt completion",
              "prompt completion text", "prompt system"]
)  # fmt: skip
def test_a_column_that_is_given_and_would_be_in_no_sample_is_refused(roles):
    with pytest.raises(DataError, match="--columns names .* does not go with "):
        chosen(dict.fromkeys(roles.split(), "a"), **{role: role for role in roles.split()})


def test_a_given_prompt_alone_is_refused_where_its_answer_may_stand_beside_it():
    words = "'Frage' alone would be trained, though 'answer' .*prompt=Frage,completion=answer"
    with pytest.raises(DataError, match=words):
        chosen({"Frage": "a", "answer": "b"}, prompt="Frage")


@pytest.mark.parametrize(
    "columns, words",
    [
        ({"prompt": "a", "completion": "c"}, "--columns names c, which is not there: found a, b"),
        ({"completion": "a"}, "--columns names only completion"),
        ({"system": "a"}, "--columns names only system"),
    ],
)
def test_given_columns_that_make_no_sample_are_refused(columns, words):
    with pytest.raises(DataError, match=words):
        chosen({"a": "1", "b": "2"}, **columns)


def test_a_row_may_have_more_that_goes_with_it_but_no_other_answer():
    first = chosen({"messages": TURNS})
    assert richer(first, chosen({"messages": TURNS, "system": "a", "note": "b"})) == ""
    bare = chosen({"prompt": "a"})
    assert "has completion as well" in richer(bare, chosen({"prompt": "a", "completion": "b"}))
