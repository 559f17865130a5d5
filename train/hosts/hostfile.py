"""Hostfiles: DeepSpeed's grammar, read strictly.

    # a comment
    #: gpu=A100-SXM-80GB nic=200Gb        hardware, for plans made off the cluster
    node1 slots=4
    user@node2 slots=4                   #: gpu=H100-SXM      of this host alone

Whatever this accepts, DeepSpeed's own reader (launcher/runner.py, `_parse_hostfile`) reads as the
same hosts, slots and order; whatever that reader would take in another sense is refused, with the
line's number. Where hosts differ, a `#: gpu=` line between them is of the hosts below it, until the
next. A name cannot be an option, a path or a shell word. A slot is a device as torch
counts them: an MI250 card is two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from train.errors import HostfileError

_NAME = r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*@)?[A-Za-z0-9][A-Za-z0-9._-]*"
_HOST = re.compile(rf"({_NAME})[ \t]+slots=([0-9]+)(?:[ \t]+(#.*))?")
_FACT = re.compile(r"([a-z][a-z0-9_]*)=(\S+)")
# What hosts may differ in; all else is of the whole cluster.
_OWN = ("gpu", "memory")
_LONGEST_NAME = 253  # RFC 1035
_MOST_SLOTS = 1024  # more devices than any host has: a typing mistake


@dataclass(frozen=True)
class Host:
    """One host: its name (`user@` kept) and how many devices it lends.

    `gpu` and `memory` are what `#:` lines say of it, where hosts differ in them.
    """

    name: str
    slots: int
    gpu: str = ""
    memory: str = ""


@dataclass(frozen=True)
class Hostfile:
    """Hosts in rank order, the hardware that `#:` lines say of all, and where this was read."""

    hosts: tuple[Host, ...]
    hardware: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    path: str = ""

    @property
    def slots(self) -> int:
        """Devices of all hosts together."""
        return sum(host.slots for host in self.hosts)


def read(path: str | Path) -> Hostfile:
    """Read a hostfile.

    Raises:
        HostfileError: no such file (near names are listed), or a line that is wrong.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise HostfileError(f"hostfile '{path}' {kind}{_nearby(path)}")
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        line = 1 + error.object[: error.start].count(b"\n")
        raise HostfileError(f"{path}:{line}: this is not text in UTF-8: save it as such") from None
    except OSError as error:
        raise HostfileError(f"hostfile '{path}' cannot be read: {error.strerror}") from None
    return parse(text, str(path))


def parse(text: str, path: str = "hostfile") -> Hostfile:
    """Parse a hostfile's text; `path` is named in errors.

    Raises:
        HostfileError: with the line's number, what is wrong and what to write.
    """
    hosts: list[Host] = []
    hardware: dict[str, str] = {}
    own: dict[str, str] = {}  # of the hosts that follow
    lines: dict[str, int] = {}
    # Newlines as `open(path).readlines()` finds them, which is how DeepSpeed reads the file.
    for number, raw in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        line = raw.strip(" \t")
        try:
            if line.startswith("#:"):
                facts = _facts(line[2:], hardware if hosts else hardware | own)
                own |= {key: value for key, value in facts.items() if key in _OWN}
                hardware |= {key: value for key, value in facts.items() if key not in _OWN}
            elif line and not line.startswith("#"):
                host = _host(line, own)
                key = host.name.rpartition("@")[2].lower()
                if key in lines:
                    raise HostfileError(
                        f"'{host.name}' was given in line {lines[key]} already: "
                        "keep one line for each host, with all its slots"
                    )
                lines[key] = number
                hosts.append(host)
        except HostfileError as error:
            raise HostfileError(f"{path}:{number}: {error}") from None
    if not hosts:
        raise HostfileError(f"{path}:1: no host is named: write a line such as 'node1 slots=4'")
    for key in _OWN:
        hosts, common = _shared(hosts, key, own.get(key, ""), list(lines.values()), path)
        hardware |= {key: common} if common else {}
    return Hostfile(tuple(hosts), MappingProxyType(hardware), path)


def _shared(
    hosts: Sequence[Host], key: str, last: str, lines: Sequence[int], path: str
) -> tuple[list[Host], str]:
    """Take what is the same of all hosts from them; return them, and that.

    A line that stands below all hosts is of all of them, as one above.

    Raises:
        HostfileError: it is said of some hosts only.
    """
    said = [getattr(host, key) for host in hosts]
    if not any(said):
        return list(hosts), last
    if "" in said:
        at = said.index("")
        raise HostfileError(
            f"{path}:{lines[at]}: {key}= is said of other hosts, but not of '{hosts[at].name}': "
            f"write '#: {key}=…' above the first host, and above each that differs"
        )
    if len(set(said)) > 1:
        return list(hosts), ""
    if key == "gpu":
        return [replace(host, gpu="") for host in hosts], said[0]
    return [replace(host, memory="") for host in hosts], said[0]


def fill(hostfile: Hostfile, n: int) -> Hostfile:
    """Take `n` devices: hosts in order, the last one partly if need be.

    Raises:
        HostfileError: fewer than one device asked for, or more than the hosts have.
    """
    if n < 1:
        raise HostfileError(f"the number of GPUs must be at least 1, but is {n} instead")
    if n > hostfile.slots:
        raise HostfileError(
            f"{n} GPUs were asked for, but {hostfile.path or 'the hostfile'} has {hostfile.slots}"
            f" ({len(hostfile.hosts)} hosts): ask for at most {hostfile.slots},"
            " or name a larger hostfile with --hostfile"
        )
    taken: list[Host] = []
    for host in hostfile.hosts:
        left = n - sum(one.slots for one in taken)
        if left:
            taken.append(replace(host, slots=min(left, host.slots)))
    return replace(hostfile, hosts=tuple(taken))


def _host(line: str, own: Mapping[str, str]) -> Host:
    """Read a host's line; `own` is what was said of the hosts from here on."""
    match = _HOST.fullmatch(line)
    if match is None:
        raise HostfileError(_advice(line))
    name, slots = match[1], int(match[2][:9])
    if len(name) > _LONGEST_NAME:
        raise HostfileError(f"a host's name has at most {_LONGEST_NAME} letters, not {len(name)}")
    if not 1 <= slots <= _MOST_SLOTS:
        raise HostfileError(
            f"'{name}' has slots={match[2][:12]}, which must lie in 1..{_MOST_SLOTS}: give the "
            "number of its GPUs, or leave the line out"
        )
    facts = dict(own)
    if (match[3] or "").startswith("#:"):
        facts |= _facts(match[3][2:], {})
    for key in facts:
        if key not in _OWN:
            raise HostfileError(
                f"'{key}' is of all hosts: write '#: {key}={facts[key]}' in a line of its own"
            )
    return Host(name, slots, facts.get("gpu", ""), facts.get("memory", ""))


def _advice(line: str) -> str:
    shown = line if len(line) <= 60 else line[:57] + "..."
    name = re.split(r"[ \t]", line)[0]
    if not re.fullmatch(_NAME, name):
        return (
            f"{name if len(name) <= 60 else name[:57] + '...'!a} cannot be a host's name: use "
            "letters, digits, '.', '-' and '_', beginning with a letter or a digit"
        )
    if len(line.split()) == 1:
        return f"'{shown}' lacks its number of GPUs: write '{name} slots=4'"
    return f"{shown!a} is not of the form '{name} slots=4' (no spaces around '=')"


def _facts(text: str, known: Mapping[str, str]) -> dict[str, str]:
    facts: dict[str, str] = {}
    for word in text.split():
        match = _FACT.fullmatch(word)
        if match is None:
            raise HostfileError(
                f"{word!a} is not a hardware fact: write '#: gpu=A100-SXM-80GB nic=200Gb'"
            )
        if {**known, **facts}.get(match[1], match[2]) != match[2]:
            raise HostfileError(f"'{match[1]}' is given twice with different values: keep one")
        facts[match[1]] = match[2]
    return facts


def _nearby(path: Path) -> str:
    folders = (path.parent, Path("hostfiles"))
    files = dict.fromkeys(
        str(file)
        for folder in folders
        if folder.is_dir()
        for file in sorted(folder.iterdir())
        if file.is_file() and _looks_like_one(file)
    )
    return f"; there are {', '.join(list(files)[:8])}" if files else "; name one with --hostfile"


def _looks_like_one(file: Path) -> bool:
    try:
        return file.stat().st_size < 1 << 20 and bool(parse(file.read_text(), str(file)))
    except (HostfileError, UnicodeDecodeError, OSError):
        return False
