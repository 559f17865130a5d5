import shutil

import numpy as np
import pytest

from train.config import ModelConfig
from train.data.alpaca import ALPACA
from train.data.tokenizers import load_tokenizer
from train.data.turn_spans import find_turns
from train.errors import DataError


def texts(opened, write, tokenizer, row, **changes):
    """Return the whole text of a row's sample and the parts of it that carry loss."""
    data = opened(write([row, row]), tokenizer, block_size=1000, **changes)
    loaded = load_tokenizer(ModelConfig(None, str(tokenizer), "fp32", None, False))
    tokens, mask = data.train.sample(0)
    edges = np.flatnonzero(np.diff(mask.astype(int))) + 1
    parts = np.split(tokens, edges)
    carried = [loaded.decode(part) for part in parts[int(not mask[0]) :: 2]]
    return loaded.decode(tokens), carried, data, loaded


@pytest.fixture(scope="session")
def untold(chatml, tmp_path_factory):
    """The Hugging Face folder without its chat template."""
    folder = tmp_path_factory.mktemp("untold") / "model"
    shutil.copytree(chatml, folder)
    (folder / "chat_template.jinja").unlink()
    return folder


@pytest.fixture(params=["pieces", "untold"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("column", ["completion", "response"])
def test_a_prompt_with_an_answer_carries_loss_on_the_answer_and_its_end(
    opened, write, tokenizer, column
):
    row = {"prompt": "hello é jumps:", column: " over the lazy dog"}
    whole, carried, data, loaded = texts(opened, write, tokenizer, row)
    assert whole == "hello é jumps: over the lazy dog"
    assert [part.strip() for part in carried] == ["over the lazy dog"]
    tokens, mask = data.train.sample(0)
    assert tokens[-1] == loaded.info.eos and mask[-1]


def test_an_answer_that_begins_with_a_character_spelt_in_bytes_is_whole(opened, write, tokenizer):
    row = {"prompt": "hello", "completion": "𝄞"}
    _, carried, data, loaded = texts(opened, write, tokenizer, row)
    assert carried == ["𝄞"]
    assert (
        data.train.loss_tokens[0] == len(loaded.encode("hello𝄞")) - len(loaded.encode("hello")) + 1
    )


def test_the_ids_are_those_of_the_joined_text(opened, write, tokenizer):
    row = {"prompt": "the quick bro", "completion": "wn fox"}
    _, carried, data, loaded = texts(opened, write, tokenizer, row)
    tokens, _ = data.train.sample(0)
    head = loaded.info.opening
    assert tokens.tolist() == [*head, *loaded.encode("the quick brown fox"), loaded.info.eos]
    assert carried[0].endswith("fox")


@pytest.mark.parametrize("row", [{"prompt": "hello world"}, {"text": "hello world"}])
def test_a_prompt_alone_or_a_text_carries_loss_everywhere_but_on_the_first_token(
    opened, write, tokenizer, row
):
    whole, _, data, _ = texts(opened, write, tokenizer, row)
    _, mask = data.train.sample(0)
    assert whole == "hello world"
    assert not mask[0] and mask[1:].all()


@pytest.mark.parametrize("given", ["", "the fox"])
def test_instructions_are_written_with_the_alpaca_template(opened, write, tokenizer, given):
    row = {"instruction": "Write hello", "input": given, "output": "hello\nworld"}
    whole, carried, _, _ = texts(opened, write, tokenizer, row)
    prompt = ALPACA[bool(given)].format(instruction="Write hello", input=given)
    assert whole == prompt + "hello\nworld"
    assert carried == ["hello\nworld"]
    assert ("### Input:\nthe fox\n\n" in whole) == bool(given)


def test_instructions_may_have_no_input_column(opened, write, pieces):
    whole, _, _, _ = texts(opened, write, pieces, {"instruction": "a", "output": "b"})
    assert whole.endswith("### Instruction:\na\n\n### Response:\nb")


CHAT = {
    "messages": [
        {"role": "system", "content": "the fox"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "world é"},
        {"role": "user", "content": "Assistant: hello"},
        {"role": "assistant", "content": "the lazy dog"},
    ]
}


def test_a_conversation_carries_loss_on_the_assistants_turns_only(opened, write, chatml):
    _, _, data, loaded = texts(opened, write, chatml, CHAT)
    tokens, mask = data.train.sample(0)
    library = loaded.inner.apply_chat_template(CHAT["messages"], tokenize=True, return_dict=False)
    assert tokens.tolist() == list(library)
    assert loaded.inner.decode(tokens[mask]) == "world é<|im_end|>\nthe lazy dog<|im_end|>\n"


@pytest.mark.parametrize("name, end", [("untold", "<|im_end|>"), ("pieces", "</s>")])
def test_without_a_template_conversations_are_chatml_and_each_answer_is_ended(
    opened, write, request, tmp_path, name, end
):
    tokenizer = request.getfixturevalue(name)
    _, _, data, _ = texts(opened, write, tokenizer, CHAT)
    model = ModelConfig(None, str(tokenizer), "fp32", None, False, data.template)
    loaded = load_tokenizer(model)
    tokens, mask = data.train.sample(0)
    turns = [f"<|im_start|>{m['role']}\n{m['content']}{end}\n" for m in CHAT["messages"]]
    first = "<s>" if name == "pieces" else ""
    assert loaded.show(tokens).replace(" ", "") == (first + "".join(turns)).replace(" ", "")
    assert mask.sum() and loaded.info.eos in tokens[mask]
    assert data.template == "chatml"
    assert any("conversations are written in ChatML" in notice for notice in data.notices)
    assert any(f"ChatML, turns ending in {end}: the saved" in notice for notice in data.notices)
    loaded.save(tmp_path)
    again = load_tokenizer(ModelConfig(None, str(tmp_path), "fp32", None, False))
    assert again.template == loaded.template and "<|im_start|>" in again.template
    assert again.info.fingerprint == loaded.info.fingerprint


def test_loss_on_all_and_on_the_completion_override_the_columns(opened, write, pieces):
    row = {"prompt": "hello", "completion": " world"}
    data = opened(write([row, row]), pieces, loss_on="all")
    assert data.train.loss_tokens[0] == data.train.lengths[0] - 1
    data = opened(write([row, row]), pieces, loss_on="completion")
    assert data.train.loss_tokens[0] < data.train.lengths[0] - 1
    with pytest.raises(DataError, match="--loss-on completion needs a column"):
        opened(write([{"text": "hello"}]), pieces, loss_on="completion")


def chatml(messages, opened=False):
    text = "".join(f"<{m['role']}>{m['content']}</>\n" for m in messages)
    return text + ("<assistant>" if opened else "")


def forgetful(messages, opened=False):
    """Write the reasoning of the last message only, as reasoning models' templates do."""
    contents = [m["content"].rpartition("</think>")[2] for m in messages[:-1]]
    shown = [
        {"role": m["role"], "content": c}
        for m, c in zip(messages, [*contents, messages[-1]["content"]], strict=True)
    ]
    return chatml(shown) + ("<assistant><think>" if opened else "")


TURNS = [
    {"role": "user", "content": "a</>"},
    {"role": "assistant", "content": "<think>t</think>b"},
    {"role": "user", "content": "b</>b"},
    {"role": "assistant", "content": "<think>u</think>c"},
]


def test_turns_are_found_by_rendering_the_beginnings():
    carried = [text for text, loss in find_turns(TURNS, chatml, (1, 3)) if loss]
    assert carried == ["<think>t</think>b</>\n", "<think>u</think>c</>\n"]


def test_turns_that_a_template_shortens_are_found_by_what_stands_around_them():
    segments = find_turns(TURNS, forgetful, (1, 3))
    assert "".join(text for text, _ in segments) == forgetful(TURNS)
    assert [text for text, loss in segments if loss] == ["b</>\n", "u</think>c</>\n"]


def test_a_template_that_hides_the_turns_is_refused():
    def shouting(messages, opened=False):
        return f"{len(messages[-1]['content'])}" + chatml(messages, opened)

    with pytest.raises(ValueError, match=r"message 4, .*--loss-on all"):
        find_turns(TURNS, shouting, (1, 3))


@pytest.mark.parametrize("marks", ["{% ? %}", "{%- ? -%}", "{%+ ? %}", "{%?%}"])
def test_a_templates_own_marks_are_used(chatml, tmp_path, write, opened, marks):
    from transformers import PreTrainedTokenizerFast

    marked = PreTrainedTokenizerFast.from_pretrained(chatml)
    opening, closing = (marks.replace("?", word) for word in ("generation", "endgeneration"))
    marked.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{% if m['role'] == 'assistant' %}{{ m['think'] }}"
        f"{opening}{{{{ m['content'] }}}}<|im_end|>{closing}{{% else %}}"
        "{{ m['content'] }}{% endif %}\n{% endfor %}"
    )
    marked.save_pretrained(tmp_path / "marked")
    _, _, data, loaded = texts(opened, write, tmp_path / "marked", CHAT)
    tokens, mask = data.train.sample(0)
    assert loaded.inner.decode(tokens[mask]) == "world é<|im_end|>the lazy dog<|im_end|>"


def test_of_marked_turns_only_those_asked_for_carry_loss(chatml, tmp_path):
    from transformers import PreTrainedTokenizerFast

    marked = PreTrainedTokenizerFast.from_pretrained(chatml)
    marked.chat_template = (
        "{{ tools }}{% for m in messages %}{% if m['role'] == 'assistant' %}{%- generation -%}"
        "{{ m['content'] }}{%- endgeneration -%}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    marked.save_pretrained(tmp_path / "marked")
    loaded = load_tokenizer(ModelConfig(None, str(tmp_path / "marked"), "fp32", None, False))
    segments = loaded.chat(CHAT["messages"], [{"name": "box"}], [4])
    assert segments == (
        ("[{'name': 'box'}]the foxhelloworld éAssistant: hello", False),
        ("the lazy dog", True),
    )


MESSAGE = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    "messages, words",
    [
        ("hello", "'messages' must be a list, but is a text"),
        ([], "empty list"),
        (["hello"], "message 1 of column 'messages' must be an object, but is a text"),
        ([MESSAGE, {"role": "user"}], "the content of message 2 must be text, but is null"),
        ([MESSAGE, {"role": 3, "content": "a"}], "the role of message 2 must be text"),
        ([{"role": "usr", "content": "a"}], "is 'usr' instead; did you mean 'user'?"),
    ],
)
def test_a_wrong_conversation_is_named_by_file_and_line(write, opened, pieces, messages, words):
    path = write([CHAT, {"messages": messages}])
    with pytest.raises(DataError) as caught:
        opened(path, pieces)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert words in str(caught.value)
