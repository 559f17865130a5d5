"""What a chat template writes is what the row holds, or the difference is told."""

import shutil

import pytest

from train.config import ModelConfig
from train.data.tokenizers import load_tokenizer
from train.errors import DataError

TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}"
    "<|im_end|>{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}"
    "</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPELT = TOOLS.replace("{{ c.function.arguments | tojson }}", "{{ '' + c.function.arguments }}")
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PARTED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{{ part.text }}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PRINTING = TOOLS.replace("{{ m.content or '' }}", "{{ m.content }}")
WANTING = TOOLS.replace(
    "{{ m.content or '' }}", "{% if m.content is not none %}{{ m.content + '' }}{% endif %}"
)
LAST = TOOLS.replace(  # the last turn otherwise, and a line between a text and a call
    "{{ m.content or '' }}",
    "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}{{ m.content or '' }}"
    "{% if m.content and m.tool_calls %}\n{% endif %}",
)
BRACKETS = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}"
    " {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)
CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]
CALL = {"id": "c", "function": {"name": "look", "arguments": '{"q": "fox"}'}}
CALLING = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "lazy"},
    {"role": "assistant", "content": "dog"},
]
LOOK = {"name": "look", "description": "finds"}


@pytest.fixture
def sample(opened, write, chatml, tmp_path):
    """Return the whole text of a row's sample, what of it carries loss, and the notices."""

    def sample(row, template=None, **changes):
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(chatml, folder)
        if template == "":
            (folder / "chat_template.jinja").unlink()
        elif template:
            (folder / "chat_template.jinja").write_text(template)
        rows = row if isinstance(row, list) else [row, row]
        data = opened(write(rows), folder, block_size=1000, **changes)
        model = ModelConfig(None, str(folder), "fp32", None, False, data.template)
        loaded = load_tokenizer(model)
        tokens, mask = data.train.sample(0)
        return loaded.show(tokens), loaded.show(tokens[mask]), "\n".join(data.notices)

    return sample


def chat(text):
    return "".join(
        f"<|im_start|>{role}\n{said}<|im_end|>\n"
        for role, said in (part.split(":") for part in text.split("/"))
    )


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT},
        {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "world"}]},
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
        {"prompt": CHAT[:1], "completion": "world"},
        {"prompt": "hello", "completion": CHAT[1:]},
        {"prompt": "hello", "completion": "world"},
        {"question": "hello", "answer": "world"},
        {"instruction": "hello", "input": "", "output": "world"},
        {"messages": '[{"role": "user", "content": "hello"}, {"role": "gpt", "content": "world"}]'},
        {"prompt": '[{"role": "user", "content": "hello"}]', "completion": "world"},
        {"prompt": "hello", "completion": '[{"from": "gpt", "value": "world"}]'},
    ],
)
def test_whatever_form_a_question_has_its_sample_is_the_same(sample, row):
    assert sample(row)[:2] == (chat("user:hello/assistant:world"), "world<|im_end|>\n")


@pytest.mark.parametrize("said", ['[{"role": "owner", "name": "Ann"}]', "[1, 2]", "[fox]", "[]"])
def test_a_list_of_other_things_than_turns_is_a_text(sample, said):
    row = {"prompt": "hello", "completion": said}
    assert sample(row)[1] == f"{said}<|im_end|>\n"


def test_an_input_goes_with_a_users_turn_only(sample):
    """It was put into the assistant's turn, and one that only calls broke the run off."""
    row = {"prompt": CALLING[:2], "input": "fox", "completion": "dog"}
    with pytest.raises(DataError, match="column 'input' goes with what the user says last, but"):
        sample(row)


def test_history_stands_behind_the_systems_turn_of_a_prompt(sample):
    system = {"role": "system", "content": "fox"}
    row = {"prompt": [system, CHAT[0]], "history": [["a", "b"]], "completion": "world"}
    assert sample(row)[0] == chat("system:fox/user:a/assistant:b/user:hello/assistant:world")


def test_the_same_samples_are_held_out_whatever_form_and_template_they_have(opened, write, chatml):
    pairs = [(f"hello {n}", f"world {n}") for n in range(60)]
    forms = [
        [{"prompt": a, "completion": b} for a, b in pairs],
        [{"question": a, "answer": b, "id": a} for a, b in pairs],
        [{"messages": [{**CHAT[0], "content": a}, {**CHAT[1], "content": [b]}]} for a, b in pairs],
        [{"conversations": [{"human": a, "gpt": b}]} for a, b in pairs],
    ]
    made = [opened(write(rows, f"{k}.jsonl"), chatml) for k, rows in enumerate(forms)]
    assert len({data.fingerprint for data in made}) == 1


def test_instructions_of_a_chat_model_are_turns_with_loss_on_the_last(sample):
    row = {"instruction": "hello", "input": "fox", "output": "world", "system": "dog",
           "history": [["a", "b"]]}  # fmt: skip
    whole, carried, _ = sample(row)
    assert whole == chat("system:dog/user:a/assistant:b/user:hello\n\nfox/assistant:world")
    assert carried == "world<|im_end|>\n"


def test_without_a_template_system_and_history_stand_before_the_instruction(sample):
    row = {"instruction": "hello", "output": "world", "system": "dog", "history": [["a", "b"]]}
    whole, carried, told = sample(row, "")
    assert whole == (
        "dog\n\n### Instruction:\na\n\n### Response:\nb\n\n"
        "### Instruction:\nhello\n\n### Response:\nworld<|im_end|>"
    )
    assert carried == "world<|im_end|>" and "alpaca template" in told


@pytest.mark.parametrize("template", [TOOLS, SPELT, PRINTING, WANTING])
@pytest.mark.parametrize("tools", [[LOOK], '[{"name": "look", "description": "finds"}]'])
def test_tools_and_calls_reach_the_template(sample, template, tools):
    whole, carried, _ = sample({"messages": CALLING, "tools": tools}, template)
    described = '{"type": "function", "function": {"name": "look", "description": "finds"}}'
    assert f"<|im_start|>system\n{described}\n<|im_end|>" in whole
    assert carried == '<call>look{"q": "fox"}</call><|im_end|>\ndog<|im_end|>\n'


def test_a_call_is_found_where_a_template_writes_the_last_turn_otherwise(sample):
    _, carried, _ = sample({"messages": CALLING}, LAST)
    assert carried == '<call>look{"q": "fox"}</call><|im_end|>\n<think></think>dog<|im_end|>\n'


@pytest.mark.parametrize(
    "row", [{"messages": CALLING}, {"prompt": CALLING[:1], "completion": CALLING[1:]}]
)
def test_the_built_in_template_writes_tools_and_calls(sample, row):
    whole, carried, told = sample({**row, "tools": [LOOK]}, "")
    described = '{"type": "function", "function": {"name": "look", "description": "finds"}}'
    assert f"<tools>\n{described}\n</tools>" in whole
    call = '<tool_call>\n{"name": "look", "arguments": {"q": "fox"}}\n</tool_call>'
    assert carried == f"{call}<|im_end|>\ndog<|im_end|>\n"
    assert whole.endswith(
        f"<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n{call}<|im_end|>\n"
        "<|im_start|>tool\nlazy<|im_end|>\n<|im_start|>assistant\ndog<|im_end|>\n"
    )
    assert "conversations are written in ChatML" in told
    pair = {"prompt": "hello", "completion": "b", "tools": [LOOK]}
    assert "<tools>" in sample(pair, "")[0]


def test_tools_may_stand_in_the_first_turn(sample):
    said = {"role": "system", "content": "fox", "tools": [LOOK]}
    whole, _, _ = sample({"messages": [said, *CHAT]}, TOOLS)
    assert '"description": "finds"' in whole


def test_keys_of_turns_that_a_template_does_not_read_are_named(sample):
    turns = [{**CHAT[0], "name": "a", "date": "b"}, {**CHAT[1], "date": None}]
    _, _, told = sample({"messages": turns})
    assert "columns that are not used: name of turns, date of turns\n" in told
    naming = TOOLS.replace("{{ m.role }}", "{{ m.name }}{{ m.role }}")
    assert "not used: date of turns\n" in sample({"messages": turns}, naming)[2]


def test_a_template_of_parts_gets_parts(sample):
    whole, carried, told = sample({"messages": CHAT}, PARTED)
    assert (whole, carried) == (chat("user:hello/assistant:world"), "world<|im_end|>\n")
    assert "leaves out" not in told


def test_calls_of_sharegpt_rows_carry_loss_and_what_tools_answer_does_not(sample):
    turns = [
        {"from": "human", "value": "hello"},
        {"from": "function_call", "value": '{"name": "look", "arguments": {"q": "fox"}}'},
        {"from": "observation", "value": "lazy"},
        {"from": "gpt", "value": "dog"},
    ]
    _, carried, _ = sample({"conversations": turns, "system": "fox"}, TOOLS)
    assert carried == '<call>look{"q": "fox"}</call><|im_end|>\ndog<|im_end|>\n'
    whole, carried, _ = sample({"conversations": turns, "system": "fox"})
    assert whole.startswith(chat("system:fox/user:hello"))
    assert carried == f"{turns[1]['value']}<|im_end|>\ndog<|im_end|>\n"


@pytest.mark.parametrize(
    "row, template, words",
    [
        ({"messages": CHAT, "tools": [LOOK]}, None, "leaves out tools and calls, as it knows none"),
        ({"messages": CALLING}, None, "leaves out tools and calls, as it knows none"),
        ({"messages": CALLING}, TOOLS.replace("{{ c.function.name }}", ""), "a call of message 2"),
        ({"messages": [{"role": "system", "content": "fox"}, *CHAT]},
         FORGETFUL.replace("messages", "messages[1:]"), "leaves out message 1, the system's"),
        ({"messages": [*CHAT, {"role": "user", "content": "fox"}]},
         FORGETFUL.replace("messages", "messages[:2]"), "leaves out message 3, the user's"),
        ({"messages": CHAT[:1], "system": "zebra"}, FORGETFUL.replace("messages", "messages[1:]"),
         "leaves out message 1, the system's"),
        ({"messages": [{"role": "system", "content": "a"}, *CHAT], "system": "b"}, None,
         "are two texts of the system's"),
        ({"prompt": "hello", "completion": CHAT}, None, "begins with the user's turn"),
        ({"prompt": "hello", "output": "b", "history": ["a"]}, None, "must hold pairs of texts"),
        ({"messages": [CHAT[0], {**CHAT[1], "weight": 0}]}, None, "gives a sample"),
        ({"messages": CALLING, "tools": [LOOK]}, TOOLS.replace("if tools", "if false"),
         "leaves out the tools, as look"),
        ({"messages": [CHAT[0], {"role": "tool", "content": "or"}, CHAT[1]]},
         FORGETFUL.replace("in messages", "in messages if m.role != 'tool'"), "turn that says or"),
        ({"messages": CHAT * 2}, FORGETFUL.replace("in messages", "in messages[-2:]"), "leaves"),
        ({"messages": CHAT[:1], "response": "world"}, None,
         "ends in no answer, .* --columns prompt=messages,completion=response, or"),
        ({"messages": [*CHAT, {"role": "tool", "content": "a"}], "system": "b", "answer": CHAT[1:]},
         None, "--columns prompt=messages,completion=answer,system=system, or give --columns mess"),
        ({"messages": CHAT[:1], "answer": 4}, None, "write 'answer' as a text, or give --columns"),
        ({"messages": [CHAT[0], {**CHAT[1], "content": [
            {"type": "text", "text": "fox", "train": False}, {"type": "text", "text": "dog"}]}]},
         None, "some parts of message 2 are marked to carry no loss"),
    ],
)  # fmt: skip
def test_what_a_template_leaves_out_is_refused(sample, row, template, words):
    with pytest.raises(DataError, match=words) as caught:
        sample(row, template)
    assert "\n" not in str(caught.value)


def test_tools_of_which_a_template_writes_the_names_alone_are_counted(sample):
    row = {"messages": CHAT, "tools": [LOOK]}
    assert "leaves out" not in sample(row, TOOLS)[2]
    assert "leaves out" in sample(row, TOOLS.replace("t | tojson", "t.function.name"))[2]


def test_thoughts_that_a_template_leaves_out_are_counted(sample):
    said = {"role": "assistant", "content": "<think>\nfox\n</think>\nworld"}
    whole, _, told = sample({"messages": [CHAT[0], said]}, FORGETFUL)
    assert "fox" not in whole
    assert "leaves out or rewrites a part of 2 turns; the first: " in told and "line 1" in told
    _, _, told = sample({"messages": [CHAT[0], {**CHAT[1], "reasoning_content": "fox"}]})
    assert "leaves out or rewrites a part of 2 turns" in told
    _, _, told = sample({"messages": [CHAT[0], said]})
    assert "leaves out" not in told


def test_empty_answers_carry_no_loss_and_are_counted(sample):
    rows = [{"question": "hello", "answer": answer} for answer in ("", "world", " \n", "dog")]
    for template in (None, ""):
        _, carried, told = sample(rows, template)
        assert ("world" in carried or "dog" in carried) and "<|im_end|>" in carried
        assert "2 answers or texts are empty and carry no loss; the first: " in told
        assert "line 1" in told
        assert "2 samples without a loss token were left out" in told


def test_an_empty_text_is_no_sample_that_teaches_to_say_nothing(opened, write, chatml):
    data = opened(write([{"text": text} for text in ("", "hello", "world", " ")]), chatml)
    assert len(data.train) + len(data.validation) == 2
    assert "2 answers or texts are empty and carry no loss" in "\n".join(data.notices)


def test_a_turn_that_is_marked_carries_no_loss(sample):
    turns = [CHAT[0], {"role": "assistant", "content": "draft", "weight": 0}, *CHAT]
    for template in (None, TOOLS, ""):
        whole, carried, _ = sample({"messages": turns}, template)
        assert "draft" in whole and "draft" not in carried and "world" in carried
    with pytest.raises(DataError, match="message 2 is marked to carry no loss, but --loss-on all"):
        sample({"messages": turns}, loss_on="all")


@pytest.mark.parametrize(
    "prompt, template",
    [("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n", None),
     ("[INST] hello [/INST]", BRACKETS)],
)  # fmt: skip
def test_a_prompt_that_brings_its_template_along_is_not_put_into_another(sample, prompt, template):
    whole, carried, told = sample({"prompt": prompt, "completion": "world"}, template)
    assert whole == f"{prompt}world<|im_end|>" and carried == "world<|im_end|>"
    assert "2 rows hold the chat template's own marks and are joined as they are" in told
    assert "[INST] hello [/INST]" in sample({"prompt": "hello", "completion": "b"}, BRACKETS)[0]


def test_a_turn_that_holds_the_templates_marks_is_told(sample):
    told = sample({"messages": [{"role": "user", "content": "<|im_start|>user"}, CHAT[1]]})[2]
    assert "in 2 rows a turn holds the chat template's own marks, which count as such" in told
    assert "marks" not in sample({"messages": CHAT})[2]


def test_what_is_not_used_or_joined_without_a_space_is_told_in_one_line(sample):
    rows = [{"prompt": "a", "completion": "b", "n": 1}, {"prompt": "a", "completion": "c", "m": 1}]
    _, _, told = sample(rows, "")
    assert "columns that are not used: n, m\n" in told
    assert "in 2 rows no white space stands between prompt and completion; the first: " in told


def test_named_columns_are_read_as_told(sample):
    row = {"Frage": "hello", "Antwort": "world", "Quelle": "own"}
    columns = (("prompt", "Frage"), ("completion", "Antwort"))
    whole, _, told = sample(row, columns=columns)
    assert whole == chat("user:hello/assistant:world") and "not used: Quelle" in told
