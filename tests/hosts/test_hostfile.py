import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.errors import HostfileError
from train.hosts.hostfile import Host, Hostfile, fill, parse, read

ROOT = Path(__file__).resolve().parents[2]


def as_deepspeed_reads(text: str) -> list[tuple[str, int]]:
    """DeepSpeed 0.19.8's grammar (launcher/runner.py:225), stated once more, independently."""
    pool: dict[str, int] = {}
    for raw in text.split("\n"):
        line = raw.strip()
        if line == "" or line.startswith("#"):
            continue
        match = re.search(r"^(\S+)\s+slots=(\d+)", line)
        if match is None or match.group(1) in pool:
            raise ValueError(line)
        pool[match.group(1)] = int(match.group(2))
    if not pool:
        raise ValueError("empty")
    return list(pool.items())


def test_hosts_hardware_and_comments_are_read() -> None:
    text = "# the lab\n#: gpu=MI250 nic=200Gb\n\nnode1 slots=4\nme@node-2.lab\tslots=08 # old\r\n"
    found = parse(text, "f")
    assert found.hosts == (Host("node1", 4), Host("me@node-2.lab", 8))
    assert dict(found.hardware) == {"gpu": "MI250", "nic": "200Gb"}
    assert (found.slots, found.path) == (12, "f")


def test_hosts_may_differ_in_their_gpus() -> None:
    text = "#: gpu=H100-SXM nic=200Gb\na slots=8\nb slots=8\n#: gpu=A100-SXM\nc slots=4\n"
    found = parse(text + "d slots=1 #: gpu=L40S memory=40GB\n".replace(" memory=40GB", ""), "f")
    assert [host.gpu for host in found.hosts] == ["H100-SXM", "H100-SXM", "A100-SXM", "L40S"]
    assert dict(found.hardware) == {"nic": "200Gb"}
    behind = parse("a slots=1 #: gpu=A memory=30GB\nb slots=1  #: gpu=A memory=40GB\n")
    assert dict(behind.hardware) == {"gpu": "A"}
    assert behind.hosts == (Host("a", 1, memory="30GB"), Host("b", 1, memory="40GB"))
    assert dict(parse("a slots=1\n#: gpu=A\n").hardware) == {"gpu": "A"}
    assert fill(found, 9).hosts == (Host("a", 8, "H100-SXM"), Host("b", 1, "H100-SXM"))


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("node1 slots=4\nnode1 slots=4\n", 2, "line 1 already"),
        ("node1 slots=4\nme@Node1 slots=4\n", 2, "line 1 already"),
        ("\n# c\nnode1\n", 3, "write 'node1 slots=4'"),
        ("node1 slots = 4", 1, "no spaces"),
        ("node1:4", 1, "cannot be a host's name"),
        ("node1 slots=0", 1, "1..1024"),
        ("node1 slots=99999999999999999999", 1, "1..1024"),
        ("node1 slots=4 max_slots=9", 1, "not of the form"),
        ("node1 slots=4x", 1, "not of the form"),
        ("node1 slots=\u0664", 1, "not of the form"),
        ("-oProxyCommand=x slots=4", 1, "cannot be a host's name"),
        ("$(reboot) slots=4", 1, "cannot be a host's name"),
        ("a;b slots=4", 1, "cannot be a host's name"),
        ("../x slots=4", 1, "cannot be a host's name"),
        ("\ufeffnode1 slots=4", 1, "cannot be a host's name"),
        ("node1\u00a0slots=4", 1, "cannot be a host's name"),
        ("a" * 300 + " slots=4", 1, "at most 253"),
        ("# only a comment\n", 1, "no host is named"),
        ("", 1, "no host is named"),
        ("#: gpu A100\nnode1 slots=4", 1, "not a hardware fact"),
        ("#: gpu=A\n#: gpu=B\nnode1 slots=4", 2, "given twice"),
        ("#: nic=1Gb\nnode1 slots=4\n#: nic=2Gb\nnode2 slots=4", 3, "given twice"),
        ("node1 slots=4\n#: gpu=B\nnode2 slots=4", 1, "gpu= is said of other hosts, but not of"),
        ("#: gpu=A\nnode1 slots=4 #: nic=2Gb", 2, "'nic' is of all hosts"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(text: str, line: int, words: str) -> None:
    with pytest.raises(HostfileError, match=re.escape(words)) as caught:
        parse(text, "h")
    assert str(caught.value).startswith(f"h:{line}: ")
    assert "\n" not in str(caught.value)


pieces = st.one_of(
    st.sampled_from(["node1", "n2", "u@n3", "n-4.x", "#", "#:", "gpu=A", "slots=4", "slots=0"]),
    st.sampled_from(["slots=12", "slots= 4", "max_slots=3", "$(x)", "-x", "é", "\x0b", "\x85"]),
    st.text(alphabet="ab1 \t#=@.-_$;|&`'\"\\\x00\x1c\u2028\u00a0", max_size=6),
)
texts = st.lists(st.lists(pieces, max_size=4).map(" ".join), max_size=5).map("\n".join)
good = st.from_regex(r"([a-z]{1,3}@)?[a-z0-9]{1,4} +slots=[1-9]( # x)?", fullmatch=True)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(st.one_of(texts, st.lists(good, min_size=1, max_size=5).map("\n".join)))
def test_any_text_is_read_as_deepspeed_reads_it_or_refused_with_a_line(text: str) -> None:
    try:
        found = parse(text, "h")
    except HostfileError as error:
        assert re.match(r"h:\d+: ", str(error))
        return
    assert [(host.name, host.slots) for host in found.hosts] == as_deepspeed_reads(text)
    assert all(re.fullmatch(r"[\w.@-]+", host.name, re.ASCII) for host in found.hosts)


def test_hosts_are_filled_in_order_and_the_last_partly() -> None:
    lab = Hostfile((Host("a", 4), Host("b", 4), Host("c", 2)), path="lab")
    assert fill(lab, 6).hosts == (Host("a", 4), Host("b", 2))
    assert fill(lab, 4).hosts == (Host("a", 4),)
    assert fill(lab, 10) == lab


@pytest.mark.parametrize(("n", "words"), [(0, "at least 1"), (-3, "at least 1"), (11, "at most")])
def test_a_count_that_cannot_be_filled_is_refused(n: int, words: str) -> None:
    with pytest.raises(HostfileError, match=words):
        fill(Hostfile((Host("a", 10),), path="lab"), n)


def test_a_missing_hostfile_is_an_error_that_lists_those_nearby(tmp_path: Path) -> None:
    (tmp_path / "2node").write_text("a slots=1\nb slots=1\n")
    (tmp_path / "notes.txt").write_text("not a hostfile")
    with pytest.raises(HostfileError, match="does not exist; there are .*2node") as caught:
        read(tmp_path / "2nodes")
    assert "notes" not in str(caught.value)


def test_a_file_that_is_not_text_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "h").write_bytes(b"a slots=1\n\xff\xfe slots=1\n")
    with pytest.raises(HostfileError, match="h:2: .*UTF-8"):
        read(tmp_path / "h")


def test_the_examples_have_the_sizes_that_their_names_say() -> None:
    sizes = {path.name: read(path).slots for path in sorted((ROOT / "hostfiles").glob("[0-9]*"))}
    assert sizes == {"1node": 4, "2node": 8, "4node": 16, "8node": 32}
    examples = ROOT / "hostfiles" / "examples"
    assert {path.name: read(path).slots for path in examples.iterdir()} == {
        "32xMI250": 64,
        "64xMI210": 64,
        "16xMI300X": 16,
    }
