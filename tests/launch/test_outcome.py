import time
from pathlib import Path

import pytest

from train.errors import ExitCode
from train.launch.hang import is_hung
from train.launch.outcome import Death, Next, Outcome, decide, first_death
from train.launch.progress import saving


def death(rank: int, code: int | None, time: float) -> Death:
    return Death(rank, "h", code, time)


def test_a_named_cause_explains_a_kill_and_a_kill_explains_an_echo() -> None:
    echo, kill, memory = death(0, 1, 1.0), death(2, None, 2.0), death(5, 77, 3.0)
    assert first_death([echo, kill, memory]) is memory
    assert first_death([echo, kill]) is kill
    assert first_death([death(4, 1, 0.5), echo]) == death(4, 1, 0.5)
    assert first_death([]) is None


def test_a_cause_that_all_ranks_name_is_left_to_rank_0() -> None:
    assert first_death([death(3, 2, 1.0), death(0, 2, 2.0)]) == death(0, 2, 2.0)


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome((0, 0), done=True), 0),
        (Outcome((0, 0)), 1),
        (Outcome((143,), (death(1, 77, 1.0), death(0, 1, 0.5))), 77),
        (Outcome((247,), (death(1, None, 1.0),)), 1),
        (Outcome((0,), lost=("b",), done=True), 1),
        (Outcome((75, 75), (death(0, 75, 1.0),)), 75),
        (Outcome((2,)), 2),
        (Outcome((143,), (death(0, 1, 0.5),), ended=ExitCode.INTERRUPTED), 130),
        (Outcome(hung=True), 1),
        (Outcome((1,), (death(1, None, 1.0), death(2, 75, 1.0)), done=True, finished=True), 0),
        (Outcome((1,), (death(1, None, 1.0),), done=True), 1),
        (Outcome((1,), (death(1, 1, 1.0),), done=True, finished=True), 1),
        (Outcome((1,), (death(1, None, 1.0),), ("b",), done=True, finished=True), 1),
    ],
)
def test_the_exit_code_is_that_of_the_cause(outcome: Outcome, code: int) -> None:
    assert outcome.code == code


def test_only_faults_and_memory_are_tried_again_and_three_times_without_progress() -> None:
    for code in (0, 2, 3, 75):
        assert decide(Outcome((code,), done=True), 0) is Next.END
    for outcome in (Outcome((1,)), Outcome((77,)), Outcome(hung=True), Outcome(lost=("b",))):
        assert [decide(outcome, n) for n in range(4)] == [Next.RESTART] * 3 + [Next.GIVE_UP]
    assert decide(Outcome((1,), ended=ExitCode.STOPPED), 0) is Next.END


def test_a_hang_is_no_step_and_no_movement_for_far_longer_than_usual() -> None:
    assert is_hung(idle=40.0, since_step=40.0, usual=1.0)
    assert not is_hung(idle=40.0, since_step=40.0, usual=10.0)
    assert not is_hung(idle=1.0, since_step=400.0, usual=1.0)  # an evaluation: ranks move
    assert not is_hung(idle=40.0, since_step=1.0, usual=1.0)
    assert not is_hung(idle=None, since_step=4000.0, usual=None)
    assert not is_hung(idle=300.0, since_step=300.0, usual=None)
    assert is_hung(idle=1000.0, since_step=1000.0, usual=None)
    # A save is waited for as long as a slow disk may need, unless a rank was stopped.
    assert not is_hung(idle=900.0, since_step=900.0, usual=1.0, saving=True)
    assert is_hung(idle=2000.0, since_step=2000.0, usual=1.0, saving=True)
    assert is_hung(idle=40.0, since_step=40.0, usual=1.0, saving=True, stopped=True)


@pytest.mark.parametrize("name", ["checkpoints/step_00000003.0001.incomplete", "model.incomplete"])
def test_a_save_is_under_way_while_its_folder_is_not_whole(tmp_path: Path, name: str) -> None:
    before = time.time() - 1
    assert not saving(tmp_path, before)
    (tmp_path / name).mkdir(parents=True)
    assert saving(tmp_path, before)
    assert not saving(tmp_path, time.time() + 60)  # one that an earlier start has left
