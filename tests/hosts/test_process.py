import os
import signal
import subprocess
import time

from train.hosts.process import caught, descendants, signal_group


def test_descendants_are_found_through_every_generation() -> None:
    with subprocess.Popen(
        ["bash", "-c", "bash -c 'sleep 30 & echo $!; wait' & wait"],
        stdout=subprocess.PIPE,
        process_group=0,
    ) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        found = descendants(child.pid)
        signal_group(child.pid, signal.SIGKILL)
    assert grandchild in found and len(found) == 2


def test_an_empty_group_is_no_error() -> None:
    with subprocess.Popen(["true"], process_group=0) as child:
        child.wait()
    signal_group(child.pid, signal.SIGTERM)
    assert descendants(child.pid) == ()


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with caught() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
            assert signals == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_are_collected_and_the_handlers_put_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with caught() as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert signals == [signal.SIGUSR1, signal.SIGTERM]
    assert signal.getsignal(signal.SIGUSR1) is before
