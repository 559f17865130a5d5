"""--chat-template: used, part of what the tokens are, and saved."""

import pytest

from tests.data.conftest import CHATML
from train.config import ModelConfig
from train.data.tokenizers import load_tokenizer
from train.errors import DataError

CHATS = [
    {"messages": [{"role": "user", "content": f"hello {n}"}, {"role": "assistant", "content": "a"}]}
    for n in range(6)
]


def test_a_template_of_ones_own_is_used_told_and_saved(opened, write, chatml, tmp_path):
    file = write(CHATML.replace("<|im_start|>", "[").replace("<|im_end|>", "]"), "own.jinja")
    path = write(CHATS)
    data, plain = opened(path, chatml, template=str(file)), opened(path, chatml)
    assert data.train.fingerprint != plain.train.fingerprint
    assert data.tokenizer.fingerprint != plain.tokenizer.fingerprint
    assert f"the chat template is that of {file}: the saved tokenizer has it" in data.notices
    assert data.shown[0].pieces[0][0].startswith("[user\nhello")
    loaded = load_tokenizer(ModelConfig(None, str(chatml), "fp32", None, False, str(file)))
    (tmp_path / "saved").mkdir()
    loaded.save(tmp_path / "saved")
    again = load_tokenizer(ModelConfig(None, str(tmp_path / "saved"), "fp32", None, False))
    assert again.template == file.read_text()
    write(file.read_text().replace("\n{{ m", " {{ m"), "own.jinja")
    changed = opened(path, chatml, template=str(file))
    assert changed.train.fingerprint != data.train.fingerprint


def test_a_template_that_writes_no_row_is_told(opened, write, chatml):
    data = opened(write([{"text": f"hello {n}"} for n in range(6)]), chatml, template="chatml")
    assert "no row is written with the chat template, ChatML, turns ending in <|im_end|>" in (
        "\n".join(data.notices)
    )


def test_pairs_of_a_base_model_become_turns_where_chatml_is_asked_for(opened, write, pieces):
    rows = [{"prompt": f"hello{n}", "completion": "world"} for n in range(6)]
    bare = opened(write(rows), pieces)
    assert any("no white space stands between" in n and "chatml" in n for n in bare.notices)
    data = opened(write(rows), pieces, template="chatml")
    assert "<|im_start|>user" in data.shown[0].pieces[0][0] and data.template is None


@pytest.mark.parametrize(
    "text, words",
    [
        ("{% for m in messages %}{{ m.content }", r"\(.*, line 1\): correct it"),
        ('{"chat_template": "x"}', "it writes no 'messages'"),
        ("", "it writes no 'messages'"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_template_that_is_none_is_one_sentence(opened, write, chatml, text, words):
    file = write(text, "own.jinja")
    with pytest.raises(DataError, match=words) as caught:
        opened(write(CHATS), chatml, template=str(file))
    assert "\n" not in str(caught.value)


def test_a_template_that_refuses_a_row_names_the_row(opened, write, chatml):
    file = write("{{ raise_exception('no ' + messages[0].role) }}", "own.jinja")
    with pytest.raises(DataError, match=r"line 1: the chat template refuses .*\(no user\)"):
        opened(write(CHATS), chatml, template=str(file))


def test_texts_beside_conversations_have_the_same_tokenizer(opened, write, pieces):
    texts = write([{"text": f"hello {n}"} for n in range(6)], "a.txt.jsonl")
    data = opened(f"{texts},{write(CHATS)}", pieces)
    assert data.template == "chatml"
    assert (
        data.tokenizer.fingerprint == opened(texts, pieces, template="chatml").tokenizer.fingerprint
    )


def test_a_template_that_is_taken_away_leaves_alpaca_and_pairs_as_they_are(opened, write, chatml):
    rows = [{"instruction": f"hello {n}", "output": "world"} for n in range(6)]
    data = opened(write(rows), chatml, template="none")
    assert "### Instruction:" in data.shown[0].pieces[0][0]
    assert "the tokenizer's chat template is not used, and not saved" in data.notices
    loaded = load_tokenizer(ModelConfig(None, str(chatml), "fp32", None, False, "none"))
    assert loaded.template == ""
    with pytest.raises(DataError, match="are conversations, which --chat-template none cannot"):
        opened(write(CHATS), chatml, template="none")
