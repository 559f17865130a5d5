"""supervised.py HOSTFILE RUN_DIR ARGS...: supervise rank_script.py with the real agents.

LEASE, a variable, sets the agents' lease in seconds, RANKS how many ranks are started. Inside of a
Slurm job its nodes are the hosts, whatever the hostfile.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1]))

from train.errors import AnyrankError  # noqa: E402
from train.hosts import hostfile, process, slurm, streams  # noqa: E402  (the path comes first)
from train.launch import protocol  # noqa: E402
from train.launch.job import LaunchJob, by_srun  # noqa: E402
from train.launch.supervise import supervise  # noqa: E402


def main() -> int:
    streams.make_lasting()
    path, run_dir, *args = sys.argv[1:]
    node_list = slurm.hosts(os.environ)
    hosts = node_list or hostfile.read(path)
    job = LaunchJob(
        hosts,
        int(os.environ.get("RANKS", hosts.slots)),
        ("--run-dir", run_dir, *args),
        Path(run_dir),
        False,
        os.environ,
        Path.cwd(),
        script=FOLDER / "rank_script.py",
        lease=float(os.environ.get("LEASE", protocol.LEASE)),
        least=int(os.environ["LEAST"]) if "LEAST" in os.environ else None,
        free_only="LEAST" in os.environ,
        saves=True,
        regrow="NO_REGROW" not in os.environ,
        probe=1.0,
    )
    try:
        with process.caught() as signals:
            return supervise(by_srun(job) if node_list else job, signals)
    except AnyrankError as error:
        print(f"[error] {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
