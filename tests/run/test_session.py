import pytest

from train.errors import DataError
from train.run.session import require_same

OPENED = {"dataset": "d1", "tokenizer": "t1", "model": "m1"}


def test_hosts_that_have_opened_the_same_may_train():
    require_same([("a", OPENED), ("a", {}), ("b", dict(OPENED)), ("b", {})])


def test_hosts_that_have_opened_something_else_are_named_with_what_differs():
    other = {**OPENED, "dataset": "d2", "model": "m2"}
    with pytest.raises(DataError, match="b has another dataset and another model than a: make"):
        require_same([("a", OPENED), ("b", other)])
