from train.launch.hang import format_ranges, summary

MAIN = 'Current thread 0x{} (most recent call first):\n  File "/t/loop.py", line 9 in fit\n'
OWN = "Thread 0x{} (most recent call first):\n"
OWN += '  File "/x/train/launch/heartbeat.py", line 3 in _pulse\n'


def test_ranks_at_the_same_place_are_told_once_and_a_stopped_one_by_itself() -> None:
    reports = [(n, "S", OWN.format(f"a{n}") + "\n" + MAIN.format(f"b{n}")) for n in (0, 1, 3)]
    first, second = summary([(2, "T", ""), *reports])
    assert first.startswith("ranks 0-1, 3: Current thread (most recent call first):")
    assert "in fit" in first and "_pulse" not in first
    assert second == "rank 2: stopped by a signal (SIGSTOP, or a debugger)"


def test_spans_are_written_with_a_dash() -> None:
    assert format_ranges([5, 0, 1, 2, 3, 7, 8]) == "0-3, 5, 7-8"
    assert format_ranges([]) == ""
