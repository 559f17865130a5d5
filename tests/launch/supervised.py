"""supervised.py HOSTFILE RUN_DIR ARGS...: supervise rank_script.py under the deepspeed twin."""

from __future__ import annotations

import os
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1]))

from train.launch import hostfile, process  # noqa: E402  (the path comes first)
from train.launch.supervise import Job, supervise  # noqa: E402


def main() -> int:
    path, run_dir, *args = sys.argv[1:]
    hosts = hostfile.read(path)
    job = Job(
        hosts,
        hosts.slots,
        ("--run-dir", run_dir, *args),
        Path(run_dir),
        False,
        os.environ,
        Path.cwd(),
        deepspeed=(sys.executable, str(FOLDER / "deepspeed_twin.py")),
        script=FOLDER / "rank_script.py",
    )
    with process.caught() as signals:
        return supervise(job, signals)


if __name__ == "__main__":
    sys.exit(main())
