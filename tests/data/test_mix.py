"""Several datasets with weights, and rows of their own for evaluation."""

from types import SimpleNamespace

import numpy as np
import pytest

from train.data.mix import lengths_taken
from train.data.order import Mixture, mixed_ids, sample_ids
from train.errors import ConfigError, DataError
from train.names import DatasetName, read_names


@pytest.mark.parametrize(
    "text, names",
    [
        ("d.jsonl", [("d.jsonl", 1, None, None, None)]),
        ("a.jsonl*2,b.jsonl", [("a.jsonl", 2, None, None, None), ("b.jsonl", 1, None, None, None)]),
        ("a/b*.5 , c/d*1.25", [("a/b", 0.5, None, None, None), ("c/d", 1.25, None, None, None)]),
        ("owner/name:en", [("owner/name", 1, "en", None, None)]),
        ("owner/name:en:val@v1*3", [("owner/name", 3, "en", "val", "v1")]),
        ("owner/name::train_sft", [("owner/name", 1, None, "train_sft", None)]),
        ("name@abc", [("name", 1, None, None, "abc")]),
        ("s3://b/a:c@d.jsonl*2", [("s3://b/a:c@d.jsonl", 2, None, None, None)]),
        ("./a:b@c.jsonl", [("./a:b@c.jsonl", 1, None, None, None)]),
    ],
)
def test_names_are_read_with_their_parts_and_weights(text, names):
    assert read_names(text) == tuple(DatasetName(*name) for name in names)


@pytest.mark.parametrize(
    "text, words",
    [
        ("a.jsonl,", "has an empty name"),
        ("a.jsonl*0", "the weight 0: leave it out"),
        ("a.jsonl,b.jsonl,a.jsonl*3", "names 'a.jsonl' twice: name it once, as a.jsonl.2"),
        ("o/n:a:b:c", "takes owner/name:subset:split@revision, but is 'o/n:a:b:c'"),
    ],
)
def test_a_name_that_is_none_is_one_sentence(text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        read_names(text)
    assert "\n" not in str(caught.value)


def test_a_file_may_be_called_as_several_are(tmp_path):
    path = tmp_path / "a,b*2.jsonl"
    path.write_text("")
    assert read_names(str(path)) == (DatasetName(str(path)),)
    with pytest.raises(ConfigError, match="only a hub's datasets have any"):
        read_names(f"{tmp_path}@main")


def steps(mixture, epochs, batch=7, seed=3):
    count = mixture.places // batch
    return [mixed_ids(seed, "f", mixture, batch, step) for step in range(epochs * count)]


def test_lengths_count_as_often_as_an_epoch_takes_them():
    split = SimpleNamespace(
        mixture=Mixture((2, 4), (6, 2)), lengths=np.array([5, 9, 9, 3, 3, 3]),
        loss_tokens=np.array([5, 0, 0, 3, 3, 3]),
    )  # fmt: skip
    found, share = lengths_taken(split)
    assert found == {3: 1.5, 5: 3.0, 9: 3.5}
    assert share == pytest.approx((15 + 4.5) / (15 + 4.5 + 31.5))


def test_a_weight_of_what_is_evaluated_on_is_refused():
    """It had no effect, since each sample is evaluated once."""
    with pytest.raises(ConfigError, match="the weight 0.5, but evaluates each sample once"):
        read_names("a.jsonl*.5", "--eval-dataset-name-or-path")


def test_an_epoch_takes_of_each_set_what_its_weight_says():
    mixture = Mixture((40, 30, 50), (80, 30, 25))
    batch, ids = 5, np.arange(120)
    for epoch in (0, 3):
        taken = np.concatenate(steps(mixture, epoch + 1, batch)[epoch * 27 :])
        times = np.bincount(taken, minlength=120)
        assert (times[:40] == 2).all() and (times[40:70] == 1).all()
        assert times[70:].sum() == 25 and times[70:].max() == 1
    halves = [set(np.concatenate(steps(mixture, 2, batch)[k * 27 : k * 27 + 27])) for k in (0, 1)]
    last = set(ids[70:])
    assert (halves[0] & last) | (halves[1] & last) == last  # the second epoch takes the others
    assert halves[0] & last != set(range(70, 95))  # and not by the order of the rows


@pytest.mark.parametrize("counts", [(11, 3), (60, 45), (20, 100)])
def test_no_sample_is_seen_twice_before_all_of_its_set_were_seen(counts):
    mixture = Mixture((20, 30), counts)
    epochs = [np.concatenate(steps(mixture, n + 1, 1)[n * sum(counts) :]) for n in range(6)]
    times = np.bincount(np.concatenate(epochs), minlength=50)
    for part in (times[:20], times[20:]):
        assert part.max() - part.min() <= 1


def test_a_mixture_of_one_set_has_the_order_that_it_always_had():
    one = Mixture((100,), (100,))
    for step in (0, 5, 77):
        assert (mixed_ids(1, "f", one, 9, step) == sample_ids(1, "f", 100, 9, step)).all()


def rows(word, count, **names):
    prompt, completion = names.get("columns", ("prompt", "completion"))
    return [{prompt: f"{word} {n}", completion: f" world {n}"} for n in range(count)]


def test_each_of_several_datasets_is_read_by_its_own_columns(opened, write, chatml):
    chats = [
        {"messages": [{"role": "user", "content": f"fox {n}"}, {"role": "gpt", "content": "a"}]}
        for n in range(30)
    ]
    one = write(rows("hello", 40, columns=("Frage", "Antwort")), "a.jsonl")
    two = write(chats, "b.jsonl")
    columns = (("prompt", "Frage"), ("completion", "Antwort"))
    data = opened(f"{one}*2,{two}*.5", chatml, columns=columns)
    told = "\n".join(data.notices)
    assert "a.jsonl: samples are 'Frage' and 'Antwort'" in told
    assert "b.jsonl: samples are 'messages'" in told
    assert "--columns is not used for b.jsonl, which has none of these columns" in told
    sizes, counts = data.train.mixture.sizes, data.train.mixture.counts
    assert sizes == tuple(map(len, data.train.parts)) and counts == (2 * sizes[0], sizes[1] // 2)
    assert f"{counts[0]} of a.jsonl (weight 2, {sizes[0]} samples) and {counts[1]} of" in told
    assert len(data.train) + len(data.validation) == 70
    number = sizes[0] + 2
    assert (data.train.sample(number)[0] == data.train.parts[1].sample(2)[0]).all()
    assert data.train.lengths[number] == len(data.train.sample(number)[0])
    assert [one.title for one in data.shown] == [
        "The first sample of a.jsonl", "The first sample of b.jsonl"
    ]  # fmt: skip
    prints = [data.fingerprint, opened(f"{one},{two}", chatml, columns=columns).fingerprint]
    assert prints[0] != prints[1] and opened(one, chatml, columns=columns).fingerprint not in prints
    with pytest.raises(DataError, match="the weight 0.001 of .* leaves nothing of its"):
        opened(f"{one}*.001,{two}", chatml, columns=columns)
    with pytest.raises(DataError, match="--columns names no, which none of c.jsonl, b.jsonl has"):
        opened(f"{write(rows('a', 4), 'c.jsonl')},{two}", chatml, columns=(("text", "no"),))


def test_rows_of_their_own_evaluate_and_none_is_held_out(opened, write, chatml, tmp_path):
    train = write(rows("hello", 40), "a.jsonl")
    held = write("question,answer\nfox,dog\nlazy,brown\n", "held.csv")
    data = opened(train, chatml, eval_name_or_path=str(held))
    assert (len(data.train), len(data.validation)) == (40, 2)
    told = "\n".join(data.notices)
    assert "is kept for evaluation" not in told and "held.csv: samples are 'question'" in told
    alone = opened(train, chatml)
    assert alone.train.fingerprint != data.train.fingerprint
    other = write("question,answer\nfox,cat\nlazy,brown\n", "other.csv")
    changed = opened(train, chatml, eval_name_or_path=str(other))
    assert changed.train.fingerprint == data.train.fingerprint
    assert changed.validation.fingerprint != data.validation.fingerprint
    both = opened(train, chatml, eval_name_or_path=f"{held},{other}")
    assert len(both.validation) == 4
    one = opened(train, chatml, eval_name_or_path=str(write(rows("a", 1), "one.jsonl")))
    assert len(one.validation) == 1


def test_it_is_told_where_texts_to_evaluate_on_are_trained_on(opened, write, chatml, tmp_path):
    train, said = write(rows("hello", 40), "set/train.jsonl"), "texts to evaluate on are trained on"
    data = opened(train, chatml, eval_name_or_path=str(train))
    assert f"40 of the 40 {said} as well" in data.notices[-1]
    names = ("question", "answer")  # other columns that say the same
    some = rows("hello", 3, columns=names) + rows("fox", 5, columns=names)
    data = opened(
        f"{train},{write(rows('a', 9))}", chatml, eval_name_or_path=str(write(some, "b.jsonl"))
    )
    assert f"3 of the 8 {said}" in data.notices[-1]
    write(rows("hello", 2) + rows("fox", 5), "set/validation.jsonl")
    assert f"2 of the 7 {said}" in opened(tmp_path / "set", chatml).notices[-1]
    assert not [told for told in opened(train, chatml).notices if said in told]


def test_the_splits_that_are_not_used_are_told(opened, write, chatml, tmp_path):
    for split in ("train", "validation", "test"):
        write(rows(split, 4), f"set/{split}.jsonl")
    folder, train = tmp_path / "set", write(rows("a", 5))
    data = opened(train, chatml, eval_name_or_path=str(folder))
    assert "set: evaluation is on the validation split, without test, train" in data.notices
    assert len(data.validation) == 4
    data = opened(train, chatml, eval_name_or_path=f"{folder}::test")
    assert "set:test: splits that are not used: train, validation" in data.notices
    data = opened(folder, chatml, eval_name_or_path=str(train))
    assert len(data.train) == 4 and len(data.validation) == 5
    assert any("the validation split is not used, as --eval" in notice for notice in data.notices)
    data = opened(f"{folder}::validation", chatml)
    assert len(data.train) + len(data.validation) == 4
    with pytest.raises(DataError, match="has no split 'tran', only .*; did you mean 'train'"):
        opened(f"{folder}::tran", chatml)
