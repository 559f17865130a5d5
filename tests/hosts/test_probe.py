import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from train.hosts import probe
from train.hosts.hostfile import Host
from train.hosts.network import free_port, is_here, master_address, route_to


def test_a_host_is_looked_at_in_well_under_a_second(tmp_path: Path) -> None:
    report = probe.look({}, tmp_path)
    assert report.memory > report.available > 0
    assert report.packages["torch"] and report.packages["deepspeed"]
    assert probe.HostReport.from_json(json.loads(json.dumps(asdict(report)))) == report


def test_the_code_digest_changes_with_the_code(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    before = probe.code_digest(tmp_path)
    (tmp_path / "a.py").write_text("x = 2\n")
    assert probe.code_digest(tmp_path) != before


def test_the_interface_towards_an_own_address_is_the_one_that_has_it() -> None:
    assert probe.interface_towards("127.0.0.1") == "lo"
    assert probe.interface_variables({}, "127.0.0.1") == {"GLOO_SOCKET_IFNAME": "lo"}
    assert probe.interface_variables({"GLOO_SOCKET_IFNAME": "ib0"}, "127.0.0.1") == {}


@pytest.mark.parametrize(
    ("others", "told"),
    [
        (["lo", "eth1", "eth10", "docker0"], {}),
        (["lo", "eth1", "virbr0"], {"NCCL_SOCKET_IFNAME": "=eth1"}),
        (["lo", "eth1", "tailscale0"], {"NCCL_SOCKET_IFNAME": "=eth1"}),
    ],
)
def test_nccl_is_told_an_interface_only_beside_bridges_and_tunnels_and_that_one_exactly(
    others: list[str], told: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "interface_towards", lambda address: "eth1")
    monkeypatch.setattr(probe.socket, "if_nameindex", lambda: list(enumerate(others, 1)))
    found = probe.interface_variables({}, "10.0.0.7")
    assert found == {"GLOO_SOCKET_IFNAME": "eth1", **told}
    assert "NCCL_SOCKET_IFNAME" not in probe.interface_variables({}, "127.0.0.1")
    assert "NCCL_SOCKET_IFNAME" not in probe.interface_variables(
        {"NCCL_SOCKET_IFNAME": "ib0"}, "10.0.0.7"
    )


def test_a_token_is_seen_only_in_a_folder_that_is_shared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").touch()
    assert probe.main(["look", str(tmp_path), "token"]) == 0
    assert probe.main(["look", str(tmp_path), "absent"]) == 0
    seen = [json.loads(line)["shared"] for line in capsys.readouterr().out.splitlines()]
    assert seen == [True, False]


def test_one_host_listens_and_another_connects() -> None:
    words = [sys.executable, "-m", "train.hosts.probe", "listen", "20"]
    env = {**os.environ, "PYTHONPATH": str(probe.ROOT)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env) as server:
        assert server.stdout is not None
        port = json.loads(server.stdout.readline())["port"]
        assert probe.connect("127.0.0.1", port) == {"error": "", "interface": "lo"}
        server.kill()
    assert probe.connect("127.0.0.1", port)["error"]


def test_names_of_this_machine_are_known_and_others_are_not() -> None:
    assert is_here("localhost") and is_here("127.0.0.1")
    assert not is_here("192.0.2.1") and not is_here("no-such-host.invalid")
    assert not is_here("nobody-of-this-name@localhost")


def test_one_host_meets_at_the_loopback_and_several_at_the_first() -> None:
    assert master_address([Host("anything", 4)]) == "127.0.0.1"
    assert master_address([Host("192.0.2.7", 1), Host("192.0.2.8", 1)]) == "192.0.2.7"
    assert route_to("127.0.0.1") == "127.0.0.1"
    assert len({free_port() for _ in range(5)}) > 1
