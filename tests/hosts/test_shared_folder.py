import shutil
from pathlib import Path

import pytest

from train.errors import ConfigError
from train.hosts.shared_folder import sees, shared_token


def test_a_folder_that_is_only_made_for_the_question_goes_again(tmp_path: Path) -> None:
    with shared_token(tmp_path / "runs" / "r") as token:
        assert sees(token)
    assert not (tmp_path / "runs" / "r").exists()


def test_a_folder_that_was_there_stays_as_it_was(tmp_path: Path) -> None:
    with shared_token(tmp_path) as token:
        assert [token] == list(tmp_path.iterdir())
    assert list(tmp_path.iterdir()) == []
    assert not sees(token, patience=0.3)


def test_a_folder_that_is_gone_meanwhile_is_no_error(tmp_path: Path) -> None:
    with shared_token(tmp_path / "r") as token:
        shutil.rmtree(token.parent)
    assert not token.parent.exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written .Not a directory.: name another"):
        shared_token(tmp_path / "file" / "r").__enter__()
