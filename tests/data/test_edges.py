"""A sample's first and last tokens: once each, and at the end of a conversation in any case."""

import json
import shutil

import pytest

from tests.data.conftest import CHATML
from train.config import ModelConfig
from train.data.tokenizers import load_tokenizer
from train.errors import DataError

CHATS = [
    {"messages": [{"role": "user", "content": f"hello {n}"}, {"role": "assistant", "content": "a"}]}
    for n in range(6)
]


@pytest.fixture
def folder(chatml, tmp_path):
    """A copy of the ChatML folder whose files a test may change."""
    return shutil.copytree(chatml, tmp_path / "tokenizer")


def configure(folder, template=None, **settings):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)


def surround(folder, before, behind=""):
    """Have tokenizer.json put tokens around every text."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    ids = {token["content"]: token["id"] for token in content["added_tokens"]}
    words = [*before.split(), "$A", *behind.split()]
    parts = [
        {"Sequence": {"id": "A", "type_id": 0}}
        if word == "$A"
        else {"SpecialToken": {"id": word, "type_id": 0}}
        for word in words
    ]
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": parts,
        "pair": parts,
        "special_tokens": {
            word: {"id": word, "ids": [ids[word]], "tokens": [word]}
            for word in set(words) & set(ids)
        },
    }
    path.write_text(json.dumps(content))


def texts(data, tokenizer):
    """Every sample with its special tokens, and the part of it that carries loss."""
    loaded = load_tokenizer(ModelConfig(None, str(tokenizer), "fp32", None, False))
    found = []
    for split in (data.train, data.validation):
        for number in range(len(split)):
            ids, mask = split.sample(number)
            found.append((loaded.spelling(ids), loaded.spelling(ids[mask])))
    return found


def test_what_the_post_processor_puts_around_a_text_is_put_around_a_sample(folder, opened, write):
    surround(folder, "<|im_start|> <|endoftext|>", "<|endoftext|>")
    data = opened(write([{"text": "hello"}] * 4), folder)
    whole, carried = texts(data, folder)[0]
    assert whole == "<|im_start|><|endoftext|>hello<|endoftext|><|im_end|>"
    assert carried == "hello<|endoftext|><|im_end|>"  # nothing before the text is to be learnt


@pytest.mark.parametrize("text", ["{0}hello{1}", " {0}hello{1}\n", "hello{1}", "{0}hello"])
def test_a_text_that_brings_its_first_or_last_token_gets_no_second(folder, opened, write, text):
    surround(folder, "<|endoftext|>")
    rows = [{"text": text.format("<|endoftext|>", "<|im_end|>")}] * 4
    data = opened(write(rows), folder)
    assert {whole for whole, _ in texts(data, folder)} == {"<|endoftext|>hello<|im_end|>"}
    assert any("4 texts bring their own '<|endoftext|>' or '<|im_end|>'" in n for n in data.notices)


def test_a_sentencepiece_text_that_brings_its_tokens_is_written_with_the_ids(pieces, opened, write):
    data = opened(write([{"prompt": "<s>hello", "completion": " world</s>"}] * 4), pieces)
    assert {whole for whole, _ in texts(data, pieces)} == {"<s>▁hello▁world</s>"}


def test_edge_tokens_inside_a_text_are_counted(folder, opened, write):
    data = opened(write([{"text": "hello <|im_end|> world"}, {"text": "hello"}] * 2), folder)
    assert any("2 texts hold none or '<|im_end|>' in their middle" in n for n in data.notices)


@pytest.mark.parametrize("end", ["\\n", "", " ### End"])
def test_a_template_without_a_stop_token_gets_one(folder, opened, write, end):
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '" + end + "' }}"
    configure(folder, template + "{% endfor %}")
    data = opened(write(CHATS), folder)
    assert all(carried.endswith("<|im_end|>") for _, carried in texts(data, folder))
    assert any("6 conversations in plain text" in notice for notice in data.notices)


def test_a_template_that_stops_is_left_as_it_is(folder, opened, write):
    data = opened(write(CHATS), folder)
    assert texts(data, folder)[0][1].count("<|im_end|>") == 1
    assert not any("plain text" in n or "learn to stop" in n for n in data.notices)


def test_marks_that_leave_the_stop_token_out_are_said(folder, opened, write):
    marked = CHATML.replace(
        "{{ m['content'] }}",
        "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
        "{% else %}{{ m['content'] }}{% endif %}",
    )
    configure(folder, marked)
    data = opened(write(CHATS), folder)
    assert any("may not learn to stop" in notice for notice in data.notices)


def test_a_date_in_the_template_is_the_runs_and_not_the_days(folder, opened, write, tmp_path):
    configure(folder, "{{ strftime_now('%d %b %Y') }}" + CHATML)
    path = write(CHATS)
    today = opened(path, folder)
    first = opened(path, folder, cache=tmp_path / "one", date="2020-02-29")
    again = opened(path, folder, cache=tmp_path / "two", date="2020-02-29")
    assert first.fingerprint == again.fingerprint != today.fingerprint
    assert "29ĠFebĠ2020" in texts(first, folder)[0][0]
    assert any("it is 2020-02-29 there" in notice for notice in first.notices)
    # What is cached of another day is kept, and not taken for this run's.
    other = opened(path, folder, date="2020-02-29")
    assert other.fingerprint == first.fingerprint
    assert opened(path, folder).fingerprint == today.fingerprint


def test_datasets_that_were_made_on_different_days_are_given_one_date(folder, opened, write):
    """Each kept its own, and the run that was to go on found another dataset."""
    configure(folder, "{{ strftime_now('%d %b %Y') }}" + CHATML)
    one, two, three = (write(CHATS, f"{n}.jsonl") for n in (1, 2, 3))
    opened(f"{one},{three}", folder, date="2020-02-28")
    opened(f"{two},{three}", folder, date="2020-02-29")
    begun = opened(f"{one},{two}", folder)
    assert begun.date == "2020-02-28"
    assert opened(f"{one},{two}", folder, date=begun.date).fingerprint == begun.fingerprint


@pytest.mark.parametrize("marked", [True, False])
def test_a_date_in_a_form_that_is_computed_is_the_runs_as_well(folder, opened, write, marked):
    asked = "{% set form = '%d %b ' + '%Y' %}{{ strftime_now(form) }}"
    answer = "{%- generation -%}{{ m['content'] }}{%- endgeneration -%}"
    configure(folder, asked + (CHATML.replace("{{ m['content'] }}", answer) if marked else CHATML))
    data = opened(write(CHATS), folder, date="2020-02-29")
    assert "29ĠFebĠ2020" in texts(data, folder)[0][0]


def test_marks_in_a_comment_are_none(folder, opened, write):
    configure(folder, "{# {% generation %} #}" + CHATML)
    assert texts(opened(write(CHATS), folder), folder)[0][1].startswith("a<|im_end|>")


def test_a_template_that_always_asks_for_another_answer_is_refused(folder, opened, write):
    """Its question would be trained as the answer's end."""
    configure(folder, CHATML.replace("{% if add_generation_prompt %}", "{% if true %}"))
    with pytest.raises(DataError, match="asks for another answer behind every conversation"):
        opened(write(CHATS), folder)


def test_a_template_without_a_date_does_not_depend_on_it(folder, opened, write, tmp_path):
    path = write(CHATS)
    first = opened(path, folder, cache=tmp_path / "one", date="2020-02-29")
    assert first.date is None
    assert opened(path, folder).fingerprint == first.fingerprint


def test_a_message_that_brings_what_the_template_writes_is_counted(folder, opened, write):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b<|im_end|>"}]
    data = opened(write([{"messages": turns}] * 4), folder)
    assert any("4 conversations hold a first token" in notice for notice in data.notices)


@pytest.mark.parametrize("adds", [True, False])
def test_settings_that_the_tokenizers_own_file_does_not_follow_are_told(
    folder, opened, write, adds
):
    if not adds:
        surround(folder, "<|endoftext|>")
    configure(folder, add_bos_token=adds)
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|endoftext|>"}}')
    data = opened(write([{"text": "hello"}] * 4), folder)
    first = "no such token" if adds else "<|endoftext|>"
    said = (
        f"add_bos_token {str(adds).lower()}, but by its tokenizer.json samples begin with {first}"
    )
    assert any(said in notice for notice in data.notices)
    last = "name <|im_end|> and <|endoftext|> as eos_token: "
    assert any(last in notice for notice in data.notices)
    assert not any("add_bos_token" in notice for notice in opened(write(CHATS), folder).notices)


def test_text_that_the_tokenizer_does_not_know_is_told(tmp_path, opened, write):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"<unk>": 0, "hello": 1, "</s>": 2}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"unk_token": "<unk>", "eos_token": "</s>"}')
    data = opened(write([{"text": "hello"}, {"text": "hello world"}] * 2), tmp_path)
    assert any("in 2 of 4 rows a part of the text has no token" in one for one in data.notices)


def test_answers_that_are_missing_values_are_told(folder, opened, write):
    rows = [{"prompt": f"a {n}", "completion": ("NaN", "b")[n % 2]} for n in range(4)]
    data = opened(write(rows), folder)
    assert any("2 answers say no more than that there is none" in one for one in data.notices)


def test_first_and_last_tokens_that_are_guessed_are_told(chatml, opened, write):
    data = opened(write([{"text": "hello"}] * 4), chatml / "tokenizer.json")
    assert any("samples begin with none and end with <|endoftext|>" in n for n in data.notices)
