import pytest

from train.errors import DataError
from train.run.resume import too_long_before
from train.run.session import require_same

OPENED = {"dataset": "d1", "tokenizer": "t1", "model": "m1"}


def test_hosts_that_have_opened_the_same_may_train():
    require_same([("a", OPENED), ("a", {}), ("b", dict(OPENED)), ("b", {})])


def test_hosts_that_have_opened_something_else_are_named_with_what_differs():
    other = {**OPENED, "dataset": "d2", "model": "m2"}
    with pytest.raises(DataError, match="b has another dataset and another model than a: make"):
        require_same([("a", OPENED), ("b", other)])


def test_ranks_of_one_host_that_have_opened_something_else_are_named_too():
    """As where each rank has a working folder, or a cache, of its own."""
    with pytest.raises(DataError, match="rank 1 on a has another dataset than a: make"):
        require_same([("a", OPENED), ("a", {"dataset": "d2", "tokenizer": "t1"})])


def test_a_short_run_is_not_kept_waiting_by_an_evaluation_before_it():
    assert too_long_before(25, 100) == ""
    assert "26 samples are held out, and all steps together have 100" in too_long_before(26, 100)
