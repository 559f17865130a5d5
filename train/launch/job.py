"""What a supervisor has been asked to run, and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from train.hosts import slurm
from train.hosts.hostfile import Hostfile
from train.hosts.remote import over_srun, over_ssh
from train.launch import progress, protocol
from train.launch.arguments import TOKENIZED
from train.paths import SCRIPT

PROBE = 60.0  # seconds
Reach = Callable[[str, str, Path], tuple[str, ...]]


@dataclass(frozen=True)
class LaunchJob:
    """A run: which hosts it may use, how many ranks it wants, and what every rank is told.

    `least`: it takes what there is from so many on, up to `ranks`; None: it wants just `ranks`, and
    after a loss goes on with any. `free_only`: GPUs that others use are left alone. `regrow`: hosts
    that it lacks are taken back, asked every `probe` seconds. `saves`: it makes checkpoints before
    its end. `lost`: hosts that the start before has lost. `unit`: the GPUs that pinned degrees take
    together; other sizes than its multiples cannot be. `before`: of a job that starts its run over
    (`--resume never`), the number of the run's newest start before it; None: it goes on.
    """

    hostfile: Hostfile
    ranks: int
    args: tuple[str, ...]
    run_dir: Path
    dry_run: bool
    env: Mapping[str, str]
    cwd: Path
    reach: Reach = over_ssh
    address: Callable[[str], str | None] = lambda name: None
    script: Path = SCRIPT
    lease: float = protocol.LEASE
    least: int | None = None
    free_only: bool = False
    regrow: bool = True
    saves: bool = False
    probe: float = PROBE
    lost: tuple[str, ...] = ()
    unit: int = 1
    before: int | None = None

    @property
    def first(self) -> tuple[str, ...]:
        """What every rank is told at the first start."""
        return self.args if self.before is None else self.resuming

    @property
    def resuming(self) -> tuple[str, ...]:
        """What every rank is told at a later start."""
        again = self.dry_run or self.starts_over
        return self.args if again else (*self.args, "--resume", "auto")

    @property
    def starts_over(self) -> bool:
        """Whether the run is still to be started over: its checkpoints are old ones until then."""
        trained = [int(path.parent.name) for path in self.run_dir.glob(f"attempts/*/{TOKENIZED}")]
        return self.before is not None and max(trained, default=0) <= self.before

    @property
    def reached(self) -> int:
        """The step of the newest checkpoint to go on from; 0 if there is none."""
        return 0 if self.starts_over else progress.newest_checkpoint(self.run_dir)

    @property
    def in_slurm(self) -> bool:
        """Whether the hosts are those of a Slurm job."""
        return self.reach is over_srun


def by_srun(job: LaunchJob) -> LaunchJob:
    """Return the job with its agents started through srun instead of ssh."""
    return replace(job, env=slurm.step_environment(job.env), reach=over_srun, address=slurm.address)
