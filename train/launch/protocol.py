"""What supervisor and agent say to each other: one JSON object in each line.

    to the agent     look (path), start (argv, env, cwd, terminal, network), go (marks), beat,
                     signal (number), stacks, end
    from the agent   hello (report), seen, output, death, stack, beat (idle, waiting), exit

The environment travels here, so that no secret is ever part of a command line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

BEAT = 1.0  # seconds between two beats, in both directions
LEASE = 20.0  # seconds without a word after which either side takes the other for lost

Message = dict[str, Any]


def encode(kind: str, **content: Any) -> bytes:
    """Return one message as a line."""
    return json.dumps({"kind": kind, **content}).encode() + b"\n"


@dataclass
class Lines:
    """Puts chunks of bytes together to messages; what is not a message is kept as `noise`."""

    rest: bytes = b""
    noise: list[str] = field(default_factory=list)

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """Take what was read and yield the messages that it completes."""
        *lines, self.rest = (self.rest + chunk).split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                message = None
            if isinstance(message, dict) and isinstance(message.get("kind"), str):
                yield message
            elif line.strip():
                self.noise.append(line.decode(errors="replace"))
