"""python -m tests.cluster.show: make docs/cluster.md's terminal blocks anew, on eight real hosts.

Needs root and tmux: each command runs in a terminal, and what stands there at its end is printed
as Markdown, the home folder as ~. In the run, node2 is killed when step 25 has been made.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.conftest import FOLDER, HOSTS, ROOT
from tests.cluster.curves import wait_for_step

COLUMNS, ROWS = 132, 50
RUN = Path("runs/demo")
TRAIN = f"./launch.sh 8 --max-steps 40 --save-step 10 --log-interval 5 --run-dir {RUN}"
CHECK = "anyrank check 32 --use-lora --model-name-or-path mistral-7b "
CHECK += "--dataset-name-or-path tatsu-lab/alpaca"
DOCUMENT = ROOT / "docs" / "cluster.md"


@dataclass(frozen=True)
class Terminal:
    """A tmux server of its own, with a window for one command after the other."""

    folder: Path
    env: dict[str, str]

    def show(self, command: str, meanwhile: Callable[[Terminal], None] | None = None) -> str:
        """Run a command and return what its terminal shows in the end, scrolled lines included."""
        done = self.folder / "done"
        done.unlink(missing_ok=True)
        script = f"{command}; touch {shlex.quote(str(done))}; exec sleep 1000"
        self.tmux("new-window", "-c", str(ROOT), script)
        try:
            if meanwhile is not None:
                meanwhile(self)
            wait(done.exists)
            text = self.tmux("capture-pane", "-p", "-J", "-S", "-5000")
        finally:
            self.tmux("kill-window")
        text = text.rstrip().replace(str(Path.home()), "~")
        lines = [line.rstrip() for line in text.splitlines()]
        return "\n".join([f"$ {command}", *lines])

    def tmux(self, *words: str) -> str:
        """Call tmux."""
        argv = ("tmux", "-L", self.folder.name, "-f", "/dev/null", *words)
        shown = subprocess.run(argv, env=self.env, capture_output=True, text=True, check=True)
        return shown.stdout

    def shows(self, text: str) -> bool:
        """Whether a text stands in the terminal now."""
        return text in self.tmux("capture-pane", "-p", "-J", "-S", "-5000")

    def choose_the_last(self) -> None:
        """Answer the menu."""
        wait(lambda: self.shows("Number of the flavor"))
        self.tmux("send-keys", "4", "Enter")

    def kill_a_host(self) -> None:
        """End every process of node2 in the middle of the run."""
        wait_for_step(ROOT / RUN, 25, 600)
        act(self.env, "kill", "2")


def act(env: dict[str, str], *words: str) -> None:
    """Run hosts.sh."""
    subprocess.run([FOLDER / "hosts.sh", *words], env=env, check=True, timeout=120)


def wait(condition: Callable[[], bool], patience: float = 900) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("what was waited for did not happen")
        time.sleep(0.2)


@contextmanager
def hosts() -> Iterator[Terminal]:
    """Bring the hosts up, and take them down again with all that was made for them."""
    with tempfile.TemporaryDirectory(prefix="anyrank-show-") as name:
        folder = Path(name)
        env = {
            "HOME": str(Path.home()), "LANG": "C.UTF-8", "LAB": name, "XDG_CONFIG_HOME": name,
            "PATH": f"{name}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        act(env, "up", str(HOSTS))
        terminal = Terminal(folder, env)
        try:
            terminal.tmux("new-session", "-d", "-x", str(COLUMNS), "-y", str(ROWS), "sleep 10000")
            yield terminal
            terminal.tmux("kill-server")
        finally:
            act(env, "down")


def blocks() -> Iterator[str]:
    """Run the commands and yield what each showed."""
    with hosts() as terminal:
        yield terminal.show("anyrank switch", Terminal.choose_the_last)
        yield terminal.show(CHECK)
        yield terminal.show("anyrank smi --hosts")
        yield terminal.show(TRAIN, Terminal.kill_a_host)


def main() -> None:
    """Put the new blocks into the place of the old, in order."""
    if (ROOT / RUN).exists():
        sys.exit(f"{RUN} exists: the run must begin at its first step, so remove it first")
    parts = DOCUMENT.read_text().split("```")
    places = [n for n in range(1, len(parts), 2) if parts[n].startswith("\n$ ")]
    for place, block in zip(places, blocks(), strict=True):
        parts[place] = f"\n{block}\n"
        print(block)
    DOCUMENT.write_text("```".join(parts))
    subprocess.run(["rm", "-r", str(ROOT / RUN)], check=True)


if __name__ == "__main__":
    main()
