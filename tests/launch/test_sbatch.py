"""slurm/train.sbatch without a Slurm: when the run is to save, and when it is queued again."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "slurm/train.sbatch"
# Ends as a run does that has saved on request, and says when it was asked.
LAUNCH = """#!/bin/bash
echo "$@" > words
trap 'date +%s.%N > asked; exit 75' USR1
touch ready
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize(
    ("left", "gigabytes", "waits"),
    [
        (122, 0.0, (1.0, 4.0)),  # two minutes are kept
        (132, 1.0, (1.0, 4.0)),  # and ten seconds for a checkpoint of a GB
        (132, 1.5, (0.0, 1.5)),  # of more there is no time left to wait
        (5000, 0.0, (0.0, 1.5)),  # long before the limit it is a preemption
    ],
)
def test_a_save_gets_the_time_that_its_checkpoint_needs(tmp_path, left, gigabytes, waits):
    (tmp_path / "bin").mkdir()
    slurm = {"bin/scontrol": '#!/bin/sh\necho "$@" > queued\n', "bin/squeue": "#!/bin/sh\nexit 1\n"}
    for name, text in {"launch.sh": LAUNCH, **slurm}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    folder = tmp_path / "own/checkpoints/step_00000010"
    folder.mkdir(parents=True)
    with (folder / "data").open("wb") as file:
        file.truncate(int(gigabytes * 1e9))
    env = os.environ | {
        "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7",
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
    }  # fmt: skip
    env["SLURM_JOB_END_TIME"] = str(int(time.time()) + left)
    words = ["bash", str(SCRIPT), "--run-dir", "own"]
    with subprocess.Popen(words, env=env, start_new_session=True) as process:
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        env_end = float(env["SLURM_JOB_END_TIME"])
        told = time.time()
        process.send_signal(signal.SIGUSR1)
        assert process.wait(20) == 75
    waited = float((tmp_path / "asked").read_text()) - told
    late = told - (env_end - left)  # the job's end was counted from a little earlier
    assert waits[0] - late <= waited <= waits[1]
    assert (tmp_path / "words").read_text() == "--run-dir runs/7 --run-dir own\n"
    assert (tmp_path / "queued").read_text() == "requeue 7\n"
