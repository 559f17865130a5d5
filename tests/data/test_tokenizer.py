import json
import shutil
import subprocess
import sys
from pathlib import Path

import mistral_common
import pytest

from train.config import ModelConfig
from train.data.tokenizers import load_tokenizer, tokenizer_key, unlike_own
from train.errors import DataError

ROOT = Path(__file__).parents[2]
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
    assert (info.bos, info.eos, info.opening, info.vocab_size) == (1, 2, (1,), 32000)
    assert mistral.encode("Hello world") == [22557, 1526]
    assert mistral.decode([1, 22557, 1526, 2]) == "Hello world"


@pytest.mark.torch
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


@pytest.mark.torch
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
def test_a_token_belongs_to_the_part_in_which_its_last_character_lies(name, request):
    tokenizer = load(request.getfixturevalue(name))
    cuts = [list(range(len(text) + 1)) for text in TEXTS]
    for text, (ids, counts) in zip(TEXTS, tokenizer.encode_batch(TEXTS, cuts), strict=True):
        assert list(ids) == tokenizer.encode(text)
        if name == "chatml":
            spans = tokenizer.inner.backend_tokenizer.encode(text, add_special_tokens=False).offsets
        else:
            spans = tokenizer.processor.encode(text, return_type="offset_mapping")["offsets"]
        last = [max(start, end - 1) for start, end in spans]
        assert counts == [sum(place < cut for place in last) for cut in range(len(text) + 1)]


@pytest.mark.parametrize("name", ["pieces", "chatml"])
def test_texts_come_back_from_their_ids(name, request):
    tokenizer = load(request.getfixturevalue(name))
    for text in ("hello world", "é 日本 𝄞", "a\n\n    b"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.slow
def test_a_tokenizer_of_whole_files_is_read_without_torch(chatml):
    code = "import sys; from train.config import ModelConfig; "
    code += "from train.data.tokenizers import load_tokenizer; "
    code += "load_tokenizer(ModelConfig(None, sys.argv[1], 'fp32', None, False)).encode('a'); "
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(chatml)], cwd=ROOT, check=True, timeout=100)


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
    before = tokenizer_key(model)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    assert tokenizer_key(model) != before


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("missing/", None, "does not exist"),
        ("bad.model", b"nothing", "not a SentencePiece model"),
        ("tokenizer.json", b"{}", "no tokenizer can be loaded"),
        pytest.param(
            "folder/config.json",
            b'{"model_type": "mistral"}',
            "no tokenizer can be loaded",
            marks=pytest.mark.torch,
        ),
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


TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
TURNS = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]
MARKED = {"32000": {"content": "<|im_end|>", "special": True}}


def sentencepiece_folder(folder, pieces=MISTRAL, **settings):
    folder.mkdir(exist_ok=True)
    shutil.copy(pieces, folder / "tokenizer.model")
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
    } | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_template_beside_a_sentencepiece_model_is_used(tmp_path, place):
    settings = {"chat_template": TEMPLATE} if place == "tokenizer_config.json" else {}
    folder = sentencepiece_folder(tmp_path, **settings)
    if not settings:
        (folder / place).write_text(TEMPLATE)
    found, plain = load(folder), load(folder / "tokenizer.model")
    assert "".join(text for text, _ in found.chat(TURNS)) == "[user]hello</s>[assistant]world</s>"
    assert found.info.opening == plain.info.opening == (1,)
    for text in TEXTS[:-1]:
        assert found.encode(text) == plain.encode(text)


@pytest.mark.parametrize("place", ["added_tokens.json", "tokenizer_config.json"])
def test_tokens_added_to_a_sentencepiece_model_are_known(tmp_path, place):
    settings = {"added_tokens_decoder": MARKED} if place == "tokenizer_config.json" else {}
    folder = sentencepiece_folder(tmp_path, **settings)
    if not settings:
        (folder / place).write_text('{"<|im_end|>": 32000}')
    found = load(folder)
    assert found.encode("Hello world<|im_end|>") == [22557, 1526, 32000]
    assert found.info.vocab_size == 32001


def test_a_list_of_added_tokens_that_repeats_the_pieces_adds_nothing(tmp_path):
    listed = {"1": {"content": "<s>", "special": True}, "2": {"content": "</s>", "special": True}}
    folder = sentencepiece_folder(tmp_path, added_tokens_decoder=listed)
    assert load(folder).info.fingerprint == load(folder / "tokenizer.model").info.fingerprint


@pytest.mark.parametrize(
    "settings, opening, closing",
    [
        ({"add_bos_token": False}, (), (2,)),
        ({"bos_token": None}, (), (2,)),
        ({"eos_token": {"content": "<s>"}}, (1,), (1,)),
        ({}, (1,), (2,)),
    ],
)
def test_a_sentencepiece_folders_settings_are_obeyed(tmp_path, settings, opening, closing):
    info = load(sentencepiece_folder(tmp_path, **settings)).info
    assert (info.opening, info.closing) == (opening, closing)


def test_a_processors_template_is_the_tokenizers(chatml, tmp_path):
    folder = shutil.copytree(chatml, tmp_path / "tokenizer")
    (folder / "chat_template.jinja").unlink()
    assert not load(folder).template
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    assert load(folder).template == TEMPLATE


def test_another_tokenizer_than_the_models_own_is_told(chatml, pieces, tmp_path):
    def told(given, model):
        return unlike_own(ModelConfig(str(model), given and str(given), "fp32", None, False))

    assert "gives other ids than the model's own tokenizer" in told(pieces, chatml)
    copy = shutil.copytree(chatml, tmp_path / "copy")
    assert told(copy, chatml) == told(None, chatml) == told(pieces, tmp_path) == ""


def test_a_class_that_replaces_the_pre_tokenizer_does_not_change_the_ids(tmp_path):
    """transformers makes a GPT2Tokenizer with its own splitting, whatever tokenizer.json says."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    texts = [f"{n * 37} apples, {n} pears and 12345 more" for n in range(300)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=600, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet
        ),
    )
    folder = tmp_path / "only"
    folder.mkdir()
    own.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    found = load(folder)
    text = "12345 apples, I'm sure: 37 000\n\n"
    assert found.encode(text) == own.encode(text, add_special_tokens=False).ids
    saved = tmp_path / "saved"
    saved.mkdir()
    again = loaded_by_transformers(found, saved)
    assert again.encode(text, add_special_tokens=False) == found.encode(text)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"added_tokens_decoder": {"7": {"content": "<|im_end|>"}}}, "contradict each other"),
        ({"chat_template": 5}, "the chat template of .* must be text, but is int"),
        ({"eos_token": "<|nowhere|>"}, "the eos_token '<.nowhere.>' .* not in its vocabulary"),
    ],
)
def test_a_folder_whose_files_contradict_each_other_is_refused(chatml, tmp_path, settings, words):
    folder = shutil.copytree(chatml, tmp_path / "tokenizer")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(DataError, match=words):
        load(folder)


def test_a_list_that_transformers_does_not_read_is_not_held_against_a_folder(chatml, tmp_path):
    """Beside added_tokens_decoder the older added_tokens.json counts for nothing."""
    folder = shutil.copytree(chatml, tmp_path / "tokenizer")
    path = folder / "tokenizer_config.json"
    listed = {"0": {"content": "<|endoftext|>", "special": True}}
    settings = {"added_tokens_decoder": listed, "bos_token": "<unused>"}
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    (folder / "added_tokens.json").write_text('{"<|im_end|>": 7}')
    assert load(folder).info.closing == (2,)


def test_a_sentencepiece_folder_that_names_an_unknown_token_is_refused(tmp_path):
    with pytest.raises(DataError, match="bos_token '<nowhere>' .* not in its tokenizer.model"):
        load(sentencepiece_folder(tmp_path, bos_token="<nowhere>"))


def test_a_tekken_file_beside_a_fast_tokenizer_does_not_hide_it(chatml, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(chatml, folder)
    shutil.copy(MISTRAL.with_name("tekken_240718.json"), folder / "tekken.json")
    plain, beside = load(chatml), load(folder)
    assert beside.template and beside.info == plain.info
    cuts = [()] * len(TEXTS)
    assert beside.encode_batch(TEXTS, cuts) == plain.encode_batch(TEXTS, cuts)
