"""A port for the ranks' meeting that is in use."""

import socket

import pytest

from train.config import World
from train.errors import ConfigError, FaultError
from train.launch import heartbeat


@pytest.mark.parametrize("supervised", [False, True])
def test_a_port_in_use_is_one_sentence_or_a_fault_that_another_start_mends(
    supervised, tmp_path
) -> None:
    from train.engine.gang import connect

    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        env = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        if supervised:
            (tmp_path / heartbeat.GO).write_text("{}")  # it is this rank's turn
            env |= {heartbeat.FOLDER: str(tmp_path)}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            with pytest.raises(FaultError if supervised else ConfigError) as caught:
                connect(World(size=2, local_size=2), env)
    assert str(caught.value).startswith(f"port {port}, where the ranks were to meet, is in use")
    assert supervised or "--master_port" in str(caught.value)
