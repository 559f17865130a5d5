import shutil
from pathlib import Path

import mistral_common
import pytest

from train.config import ModelConfig
from train.data.tokenizers import load_tokenizer, tokenizer_key
from train.errors import DataError

MISTRAL = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
TEXTS = (
    "hello world",
    " leading and trailing ",
    "",
    "\n\ttabs\r\nand lines\n\n",
    "é 日本 𝄞 ☃",
    "def f(x):\n    return x\n\n\n        indented\n",
    "the [INST] quick </s> <|im_end|> brown",
)


def load(name, model=None):
    return load_tokenizer(ModelConfig(model, name and str(name), "fp32", None, False))


def loaded_by_transformers(tokenizer, folder):
    from transformers import AutoTokenizer

    tokenizer.save(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_mistrals_real_model_is_read(tmp_path):
    mistral = load(MISTRAL)
    info = mistral.info
    assert (info.bos, info.eos, info.adds_bos, info.vocab_size) == (1, 2, True, 32000)
    assert mistral.encode("Hello world") == [22557, 1526]
    assert mistral.decode([1, 22557, 1526, 2]) == "Hello world"


def test_mistrals_real_model_is_saved_so_that_transformers_gives_the_same_ids(tmp_path):
    mistral = load(MISTRAL)
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    library = loaded_by_transformers(mistral, tmp_path)
    for text in (text for text in TEXTS if "<" not in text):
        assert library(text)["input_ids"] == [1, *mistral.encode(text)]
    assert library.decode(library("Hello world")["input_ids"], skip_special_tokens=True) in (
        "Hello world",
        " Hello world",
    )
    assert (library.bos_token_id, library.eos_token_id) == (1, 2)
    assert (tmp_path / "tokenizer.model").read_bytes() == MISTRAL.read_bytes()


def test_a_folder_with_only_a_sentencepiece_model_is_read_by_sentencepiece(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(MISTRAL.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    assert load(None, model=str(tmp_path)).encode("Hello world") == [22557, 1526]


def test_a_saved_hugging_face_tokenizer_is_the_same_one(chatml, tmp_path):
    tokenizer = load(chatml)
    library = loaded_by_transformers(tokenizer, tmp_path)
    for text in TEXTS:
        assert library(text)["input_ids"] == tokenizer.encode(text)
    assert load(tmp_path).info.fingerprint == tokenizer.info.fingerprint


def test_a_bare_tokenizer_json_is_read_with_its_usual_special_tokens(chatml):
    bare = load(chatml / "tokenizer.json")
    assert bare.info.eos == load(chatml).inner.convert_tokens_to_ids("<|endoftext|>")
    assert bare.encode("hello world") == load(chatml).encode("hello world")
    assert bare.chat([{"role": "user", "content": "a"}]) is None or bare.template


@pytest.mark.parametrize("name", ["pieces", "chatml"])
def test_every_token_names_a_character_and_they_never_go_back(name, request):
    tokenizer = load(request.getfixturevalue(name))
    for text, (ids, characters) in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        assert ids.tolist() == tokenizer.encode(text)
        assert (characters[1:] >= characters[:-1]).all()
        assert not len(characters) or 0 <= characters.min() <= characters.max() < len(text)


@pytest.mark.parametrize("name", ["pieces", "chatml"])
def test_texts_come_back_from_their_ids(name, request):
    tokenizer = load(request.getfixturevalue(name))
    for text in ("hello world", "é 日本 𝄞", "a\n\n    b"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_fingerprint_is_of_the_contents(pieces, chatml, tmp_path):
    copy = tmp_path / "copy.model"
    copy.write_bytes(pieces.read_bytes())
    assert load(copy).info.fingerprint == load(pieces).info.fingerprint
    assert load(MISTRAL).info.fingerprint != load(pieces).info.fingerprint
    assert load(chatml).info.fingerprint != load(pieces).info.fingerprint


def test_the_key_changes_when_a_file_is_written_to(tmp_path, pieces):
    copy = tmp_path / "tokenizer.model"
    model = ModelConfig(str(tmp_path), None, "fp32", None, False)
    copy.write_bytes(pieces.read_bytes())
    before = tokenizer_key(model)
    (tmp_path / "model.safetensors").write_bytes(b"weights are no part of it")
    assert tokenizer_key(model) == before
    copy.write_bytes(pieces.read_bytes())
    assert tokenizer_key(model) != before


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("missing/", None, "does not exist"),
        ("bad.model", b"nothing", "not a SentencePiece model"),
        ("tokenizer.json", b"{}", "no tokenizer can be loaded"),
        ("folder/config.json", b'{"model_type": "mistral"}', "no tokenizer can be loaded"),
    ],
)
def test_what_is_no_tokenizer_is_refused_in_a_sentence(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        load(path.parent if "folder" in name else path)
    assert "\n" not in str(caught.value)


def test_a_run_that_names_no_tokenizer_is_told_so():
    with pytest.raises(DataError, match="give --tokenizer or --model-name-or-path"):
        load(None)


@pytest.mark.parametrize(
    "file, content, words",
    [
        (
            "tokenizer_config.json",
            '{"chat_template": "{{ messages }}"}',
            "has a chat template, but",
        ),
        ("added_tokens.json", '{"<|im_end|>": 32000}', "has added tokens, but no tokenizer.json"),
    ],
)
def test_a_template_beside_a_sentencepiece_model_is_not_passed_over(tmp_path, file, content, words):
    shutil.copy(MISTRAL, tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    assert load(tmp_path).info.vocab_size == 32000
    (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=words):
        load(tmp_path)
    assert load(tmp_path / "tokenizer.model").info.vocab_size == 32000


def test_a_tekken_file_beside_a_fast_tokenizer_does_not_hide_it(chatml, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(chatml, folder)
    shutil.copy(MISTRAL.with_name("tekken_240718.json"), folder / "tekken.json")
    plain, beside = load(chatml), load(folder)
    assert beside.template and beside.info == plain.info
    for ours, theirs in zip(beside.encode_batch(TEXTS), plain.encode_batch(TEXTS), strict=True):
        assert ours[0].tolist() == theirs[0].tolist()
