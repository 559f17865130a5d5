"""A twin of the `deepspeed` command that starts in milliseconds: same flags, same environment.

Like the original it starts the ranks of one host, ends the others when one fails, and returns the
failed rank's code.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for flag in ("--log_level", "--num_gpus", "--hostfile", "--include", "--node_rank"):
        parser.add_argument(flag)
    parser.add_argument("--master_addr", default="127.0.0.1")
    parser.add_argument("--master_port")
    parser.add_argument("--no_ssh", action="store_true")
    parser.add_argument("script")
    known, args = parser.parse_known_args()
    slots = [int(known.num_gpus or 0)]
    if known.hostfile:
        lines = Path(known.hostfile).read_text().splitlines()
        slots = [int(line.partition("slots=")[2]) for line in lines if "slots=" in line]
    node = int(known.node_rank or 0)
    ranks = []
    for local in range(slots[node]):
        env = {
            **os.environ,
            "RANK": str(sum(slots[:node]) + local),
            "LOCAL_RANK": str(local),
            "WORLD_SIZE": str(sum(slots)),
            "MASTER_ADDR": known.master_addr,
            "MASTER_PORT": known.master_port,
        }
        argv = [sys.executable, known.script, f"--local_rank={local}", *args]
        ranks.append(subprocess.Popen(argv, env=env))
    return follow(ranks)


def follow(ranks: list[subprocess.Popen[bytes]]) -> int:
    while ranks:
        for rank in list(ranks):
            code = rank.poll()
            if code:
                for other in ranks:
                    other.terminate()
                time.sleep(30)  # the original waits as long for each survivor
                return code % 256
            if code == 0:
                ranks.remove(rank)
        time.sleep(0.05)
    return 0


if __name__ == "__main__":
    sys.exit(main())
