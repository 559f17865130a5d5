"""Conversations in every form become the same messages."""

import pytest

from train.data.turns import converse, read_tools, read_turns

ASKED = {"role": "user", "content": "a"}
SAID = {"role": "assistant", "content": "b"}
CALL = {
    "type": "function", "function": {"name": "look", "arguments": {"q": [1, None]}},
}  # fmt: skip
KNOWING = "{{ message.tool_calls }}"


@pytest.mark.parametrize(
    "turns",
    [
        [ASKED, SAID],
        [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
        [{"role": "Human", "content": "a"}, {"role": "GPT", "content": "b"}],
        [{"role": "user", "text": "a"}, {"role": "model", "text": "b"}],
        [{"human": "a", "assistant": "b"}],
        [{"input": "a", "output": "b"}],
        [{**ASKED, "tool_calls": None, "name": None}, {**SAID, "tool_calls": []}],
        [{**ASKED, "content": [{"type": "text", "text": "a"}]}, {**SAID, "content": ["b"]}],
        '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]',
        {"from": ["human", "gpt"], "value": ["a", "b"]},
    ],
)
def test_every_form_of_a_turn_is_read(turns):
    assert read_turns(turns, "it", "")[0] == [ASKED, SAID]


def test_what_else_a_turn_holds_is_the_templates():
    (message,), _ = read_turns([{**SAID, "reasoning_content": "c", "name": "d"}], "it", "")
    assert message == {**SAID, "reasoning_content": "c", "name": "d"}


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [
            {"type": "function", "function": {"name": "look", "arguments": '{"q": [1, null]}'}}]},
        {"role": "assistant", "function_call": {"name": "look", "arguments": {"q": [1, None]}}},
        {"from": "function_call", "value": '{"name": "look", "arguments": {"q": [1, null]}}'},
        {"from": "tool_call", "value": '[{"name": "look", "parameters": {"q": [1, null]}}]'},
    ],
)  # fmt: skip
def test_every_form_of_a_call_is_read(turn):
    (message,), _ = read_turns([turn], "it", KNOWING)
    assert message == {"role": "assistant", "content": None, "tool_calls": [CALL]}


def test_a_call_in_words_stays_so_where_the_template_writes_none():
    (message,), _ = read_turns([{"from": "function_call", "value": "look up"}], "it", "")
    assert message == {"role": "assistant", "content": "look up"}
    with pytest.raises(ValueError, match="message 1 is a call, but its text is no JSON"):
        read_turns([{"from": "function_call", "value": "look up"}], "it", KNOWING)


@pytest.mark.parametrize("role", ["observation", "function", "tool", "ipython"])
def test_what_a_tool_answers_is_the_tools(role):
    assert read_turns([{"from": role, "value": "a"}], "it", "")[0][0]["role"] == "tool"


def test_a_role_that_the_template_names_is_its_own():
    turns = [{"role": "critic", "content": "a"}]
    assert read_turns(turns, "it", "{% if role == 'critic' %}")[0] == turns
    with pytest.raises(
        ValueError, match="must be one of system, user, assistant, tool, but is 'cr"
    ):
        read_turns(turns, "it", "")
    with pytest.raises(ValueError, match="message 1 of it must be an object, but is a text"):
        read_turns(["a"], "it", "")


@pytest.mark.parametrize(
    "mark, carries",
    [
        ({"weight": 0}, False), ({"weight": 1.0}, True), ({"train": False}, False),
        ({"loss": False}, False), ({"trainable": True}, True), ({"loss_mask": 0}, False),
        ({"ignore": True}, False), ({"masked": 0}, True), ({"weight": None}, True), ({}, True),
        ({"content": [{"type": "text", "text": "b", "train": False}]}, False),
        ({"content": [{"text": "b", "weight": 0}, {"text": "", "ignore": 1}]}, False),
        ({"content": [{"type": "text", "text": "b", "train": True}]}, True),
        ({"content": [{"type": "text", "text": "b", "train": None}, ""]}, True),
    ],
)  # fmt: skip
def test_a_turn_says_whether_it_carries_loss(mark, carries):
    messages, marks = read_turns([ASKED, {**SAID, **mark}, ASKED, SAID], "it", "")
    talk = converse(messages, marks)
    assert talk.messages == (ASKED, SAID, ASKED, SAID)
    assert talk.carrying == ((1, 3) if carries else (3,))


def test_parts_of_turns_that_are_named_by_their_speakers_are_marked_as_well():
    turn = {"human": "a", "assistant": [{"text": "b", "train": False}]}
    assert read_turns([turn], "it", "") == ([ASKED, SAID], [None, False])


@pytest.mark.parametrize(
    "turn, words",
    [
        ({**SAID, "weight": 0.5}, "'weight' of message 1 must be 0 or 1, but is 0.5"),
        ({**SAID, "mask": True}, "'mask' of message 1 is not clear"),
        ({**SAID, "train": True, "ignore": True}, "contradict each other"),
        ({**ASKED, "train": True}, "message 1 is the user's and marked to carry loss"),
        ({**ASKED, "content": [{"type": "image", "url": "a"}]}, "is of type 'image': only text"),
        (
            {**SAID, "content": [{"text": "a", "train": False}, {"text": "b", "train": True}]},
            "some parts of message 1 are marked to carry no loss",
        ),
        ({**SAID, "content": ["a", {"text": "b", "weight": 0}]}, "mark all of them alike"),
        ({**SAID, "content": [{"text": "b", "weight": 0.5}]}, "'weight' of part 1 of message 1 m"),
        ({"role": "user"}, "the content of message 1 must be text, but is null"),
        ({**SAID, "tool_calls": [{"function": {}}]}, "a call of message 1 has no name"),
        ({**SAID, "tool_calls": "look"}, "the calls of message 1 must be a list"),
    ],
)
def test_a_turn_that_cannot_be_meant_is_refused(turn, words):
    with pytest.raises(ValueError, match=words):
        converse(*read_turns([turn], "it", ""))


def test_turns_before_the_answer_and_empty_ones_carry_no_loss():
    messages = [ASKED, SAID, ASKED, {**SAID, "content": " \n"}, SAID]
    talk = converse(messages, [None] * 5, first=2)
    assert (talk.carrying, talk.empty) == ((4,), 1)


@pytest.mark.parametrize("held", [
    [{"name": "look"}], '[{"name": "look"}]', [{"type": "function", "function": {"name": "look"}}],
])  # fmt: skip
def test_every_form_of_tools_is_read(held):
    assert read_tools(held) == ({"type": "function", "function": {"name": "look"}},)
    assert read_tools(None) == read_tools("") == ()
