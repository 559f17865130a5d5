import pytest

from train.data.preview import LINES, preview


def test_what_carries_loss_is_marked_line_by_line():
    sample = [("<s>User: hi\nAssistant:", False), (" first\nsecond</s>", True), ("\n", True)]
    assert preview(sample, colour=False) == ["<s>User: hi", "Assistant:« first»", "«second</s>»"]
    assert preview(sample, colour=True)[2] == "\x1b[32msecond</s>\x1b[0m"


@pytest.mark.parametrize("before, after", [(0, 300), (3, 300), (150, 150), (300, 1), (19, 1)])
def test_a_long_sample_is_shown_where_it_begins_ends_and_its_loss_begins(before, after):
    sample = [("".join(f"q{n}\n" for n in range(before)), False),
              ("\n".join(f"a{n}" for n in range(after)), True)]  # fmt: skip
    lines = preview(sample, colour=False)
    assert len(lines) <= LINES
    assert lines[0] == ("q0" if before else "«a0»") and lines[-1] == f"«a{after - 1}»"
    assert "«a0»" in lines
    left = sum(int(line.split()[1]) for line in lines if line.startswith("…"))
    assert left + sum(not line.startswith("…") for line in lines) == before + after


def test_a_long_line_is_cut_and_nothing_steers_the_terminal():
    (line,) = preview([("x" * 500 + "\x1b[2J\t", False), ("end", True)], colour=False)
    assert len(line) < 120 and line.endswith(r"\x1b[2J\t«end»") and "\x1b" not in line
