import pytest

from train.data.source import roles
from train.errors import DataError


@pytest.mark.parametrize(
    "names, trained, held",
    [
        (("test", "train", "unsupervised"), "train", None),
        (("en",), "en", None),
        (("train_sft", "test_sft", "validation_b", "validation"), "train_sft", "validation"),
    ],
)
def test_a_split_of_the_very_name_comes_first(names, trained, held):
    chosen = roles("d", names)
    assert (chosen["train"], chosen.get("validation")) == (trained, held)


@pytest.mark.parametrize("names", [("train_sft", "test_sft", "train_gen"), ("en", "de", "test")])
def test_several_splits_to_train_on_are_refused(names):
    with pytest.raises(DataError, match=r"several splits to train on \(.*to_json"):
        roles("owner/name", names)
