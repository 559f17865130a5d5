import pytest

from train.planned import layout


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([0], "Found 1 host x 1 = 1 ranks"),
        ([0, 0, 1, 1], "Found 2 hosts x 2 = 4 ranks"),
        ([0, 0, 1], "Found 2 hosts with 2, 1 = 3 ranks"),
    ],
)
def test_the_layout_found_is_told(nodes: list[int], words: str) -> None:
    assert layout(nodes) == words
