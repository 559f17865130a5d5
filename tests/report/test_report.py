import json
import os
import re
import shutil
from pathlib import Path

import pytest

from train.commands.report import command
from train.errors import ConfigError
from train.report import figures
from train.report.facts import facts
from train.report.runs import compare, curves, read_runs
from train.report.tables import tables
from train.report.verdict import sentences, tone, verdict


def make_run(path: Path, losses, ranks, *, begins=(1,), nudge=0.0, done=True, lines=()) -> Path:
    """A run folder as training leaves it; `ranks` and `begins` say how many ranks from when."""
    path.mkdir(parents=True)
    with (path / "metrics.jsonl").open("w") as file:
        for step, loss in enumerate(losses, 1):
            world = [n for n, first in zip(ranks, begins, strict=True) if first <= step][-1]
            record = {
                "step": step, "loss": loss * (1 + nudge), "lr": 1e-3, "tokens": 10, "seconds": 0.5,
                "loss_tokens": 9, "tokens_per_s": 20.0 * world, "mfu": None, "world_size": world,
                "sample_hash": f"{step:x}", "peak_bytes": 2**30, "time": 1000.0 + step,
            }  # fmt: skip
            file.write(json.dumps(record) + "\n")
        file.write(json.dumps({"step": len(losses), "eval_loss": 2.5, "eval_tokens": 3}) + "\n")
        file.write('{"step": 99, "lo')
    ends = [*(first - 1 for first in begins[1:]), len(losses)]
    for number, (world, first, last) in enumerate(zip(ranks, begins, ends, strict=True), 1):
        attempt = path / "attempts" / f"{number:04d}"
        attempt.mkdir(parents=True)
        plan = {"plan": {"dp": world}, "memory": {"weights": 2**29, "total": 2**29},
                "time": {"compute": 0.4, "total": 0.4}}  # fmt: skip
        (attempt / "plan.json").write_text(json.dumps(plan))
        (attempt / "config.json").write_text(json.dumps({"model": {"precision": "fp32"}}))
        started = {"started": 1000.0 + first - 0.5, "hosts": ["0: cpu"]}
        (attempt / "environment.json").write_text(json.dumps(started))
        steps = [f"| INFO | [Step {step}/9] | Loss: 1 |" for step in range(first, last + 1)]
        (attempt / "log.txt").write_text("\n".join([*steps, *lines]) + "\n")
        os.utime(attempt / "log.txt", (1000 + last, 1000 + last))
    if done:
        (path / "DONE").write_text("")
    return path


LOSSES = [3.0, 2.5, 2.25, 2.125]


def test_runs_of_different_counts_with_the_same_losses_are_one_curve(tmp_path, capsys):
    one = make_run(tmp_path / "one", LOSSES, (1,))
    two = make_run(tmp_path / "two", LOSSES, (4, 2), begins=(1, 3), nudge=1e-7)
    runs = read_runs([one, two])
    assert runs[1].gpus == (4, 2)
    found = compare(*runs)
    assert (found.common, found.apart) == (4, None)
    assert found.relative == pytest.approx(1e-7, rel=1e-3)
    assert verdict(runs).startswith("One curve: 1 rank, 4 → 2 ranks give the same losses")
    assert command([str(one), str(two), "--text"]) == 0
    said = capsys.readouterr().out
    assert "One curve" in said and "1.00e-07" in said and "resumed by start 2" in said
    assert not (one / "report").exists()


def test_the_words_of_resumes_stand_below_one_another_where_there_is_room(tmp_path):
    runs = read_runs([make_run(tmp_path / "one", LOSSES, (2, 3, 1), begins=(1, 2, 4))])
    first, second = figures.losses(runs).axes[0].texts
    assert "step 1 on 2 ranks, lost" in first.get_text()
    assert (first.get_ha(), second.get_ha()) == ("left", "right")
    assert first.get_position()[1] - second.get_position()[1] == pytest.approx(2 * 0.07)  # lines


def configure(run: Path, lr: float, **told) -> None:
    """Write what the run's start says of itself."""
    config = {"model": {"name_or_path": "/m/tiny", "precision": "fp32", "lora": None},
              "data": {"name_or_path": "own/data", "batch_size": 4, "block_size": 8, "seed": 0},
              "optimizer": {"lr": lr, "lr_schedule": "constant"}, "max_steps": 4,
              "output": {"run_dir": str(run)}}  # fmt: skip
    for attempt in (run / "attempts").iterdir():
        (attempt / "config.json").write_text(json.dumps(config))
        environment = json.loads((attempt / "environment.json").read_text())
        environment |= {"arguments": ["--lr", f"{lr:g}"], "parameters": 2_000_000} | told
        (attempt / "environment.json").write_text(json.dumps(environment))


def test_runs_that_are_one_curve_are_told_even_where_a_third_differs(tmp_path, capsys):
    one, two = (make_run(tmp_path / f"r{n}", LOSSES, (n,)) for n in (1, 2))
    hot = make_run(tmp_path / "hot", LOSSES, (2,), nudge=0.01)
    lines = (hot / "metrics.jsonl").read_text().replace('"lr": 0.001', '"lr": 0.01')
    (hot / "metrics.jsonl").write_text(lines)
    for run, rate in ((one, 0.005), (two, 0.005), (hot, 0.01)):
        configure(run, rate)
    runs = read_runs([one, hot, two])
    assert [[run.name for run in group] for group in curves(runs)] == [["r1", "r2"], ["hot"]]
    assert (tone(runs), tone([runs[0], runs[2]])) == ("plain", "good")
    said = sentences(runs)
    assert said[0].startswith("One curve: r1 (1 rank), r2 (2 ranks) give the same losses")
    assert said[1].startswith("Different runs: hot differs from r1")
    assert said[1].endswith("from step 1: --lr 0.005 → 0.01")
    rows = tables(runs)
    shown = {(row[""], row["what was run"]): row["of"] for row in rows["What was run"]}
    assert shown["model", "tiny, 2 million parameters, all trained, fp32"] == "all"
    assert shown["rate", "0.005, constant"] == "r1, r2"
    assert shown["command", "./launch.sh 2 --lr 0.01"] == "hot"
    assert shown["data", "own/data"] == "all"
    # Twice as fast on twice the ranks, which only what is one curve is compared for.
    speed = [(row["run"], row["times as fast"], row["ideal"]) for row in rows["Speed-up"]]
    assert speed == [("r1", "1.00", "1.00"), ("r2", "2.00", "2.00")]
    assert command([str(run) for run in (one, hot, two)]) == 0
    assert "set otherwise: --lr 0.005 → 0.01" in capsys.readouterr().out
    drawn = (one / "report/speed-up.svg").read_text()
    assert "currentColor" in drawn and ">ideal<" in drawn


def test_a_start_that_was_refused_is_not_what_was_run(tmp_path):
    """Another batch size for a run that has checkpoints is refused, after its folder was made."""
    run = make_run(tmp_path / "run", LOSSES, (2,))
    configure(run, 0.005)
    shutil.copytree(run / "attempts/0001", run / "attempts/0002")
    (run / "attempts/0002/log.txt").write_text("The run folder is run\n")
    config = json.loads((run / "attempts/0002/config.json").read_text())
    config["data"]["batch_size"] = 32
    (run / "attempts/0002/config.json").write_text(json.dumps(config))
    plan = {"plan": {"dp": 8}, "memory": {"total": 2**33}, "time": {"total": 9.0}}
    (run / "attempts/0002/plan.json").write_text(json.dumps(plan))
    environment = {"started": 2000.0, "hosts": ["0: A100"] * 8, "arguments": ["--lr", "1"]}
    (run / "attempts/0002/environment.json").write_text(json.dumps(environment))
    (found,) = read_runs([run])
    rows = tables([found])
    shown = {row[""]: row["what was run"] for row in rows["What was run"]}
    assert shown["batch"].startswith("4 samples")
    assert shown["command"] == "./launch.sh 2 --lr 0.005"
    assert found.on_cpu and rows["Time of a step, predicted and measured"][0]["planned"] == "0.400"
    assert rows["Runs"][0]["starts"] == "2"


def test_a_run_that_went_on_at_another_rate_tells_both(tmp_path):
    run = make_run(tmp_path / "run", LOSSES, (2, 4, 4), begins=(1, 3, 4))
    configure(run, 0.005)
    for number in ("0002", "0003"):
        file = run / "attempts" / number / "config.json"
        file.write_text(json.dumps({"optimizer": {"lr": 0.5, "lr_schedule": "constant"}}))
    (found,) = read_runs([run])
    assert facts(found)["rate"] == "0.005, constant; from step 3 on 0.5, constant"
    over = make_run(tmp_path / "over", LOSSES, (2, 2), begins=(1, 1))
    configure(over, 0.005)
    file = over / "attempts/0002/config.json"
    file.write_text(json.dumps({"optimizer": {"lr": 0.5, "lr_schedule": "constant"}}))
    assert facts(read_runs([over])[0])["rate"] == "0.5, constant"


def test_a_run_is_compared_with_its_plan_with_a_word_on_why(tmp_path):
    (run,) = read_runs([make_run(tmp_path / "run", LOSSES, (2,))])
    rows = tables([run])
    (memory,) = rows["Memory, predicted and measured"]
    assert (memory["planned"], memory["measured"]) == ("0.5", "1.0")
    assert memory["why"].startswith("of a CPU rank the growth of the whole process")
    assert memory["planned for"] == "weights 0.5"
    (time,) = rows["Time of a step, predicted and measured"]
    assert (time["planned"], time["measured"], time[""]) == ("0.400", "0.500", "+25%")
    assert "rough guess" in time["why"]


def test_a_loss_that_differs_is_named_with_its_step(tmp_path):
    runs = [make_run(tmp_path / "a", LOSSES, (1,)), make_run(tmp_path / "b", LOSSES, (2,))]
    lines = (runs[1] / "metrics.jsonl").read_text().replace('"loss": 2.25', '"loss": 2.26')
    (runs[1] / "metrics.jsonl").write_text(lines)
    said = verdict(read_runs(runs))
    assert tone(read_runs(runs)) == "bad"
    assert said.startswith("Not one curve") and "step 3 of b" in said and "1e-06" in said


def test_runs_over_other_samples_are_called_different(tmp_path):
    runs = [make_run(tmp_path / "a", LOSSES, (1,)), make_run(tmp_path / "b", LOSSES, (2,))]
    path = runs[1] / "metrics.jsonl"
    path.write_text(path.read_text().replace('"sample_hash": "2"', '"sample_hash": "x"'))
    assert "Different runs" in verdict(read_runs(runs))
    assert "from step 2" in verdict(read_runs(runs))


def test_the_history_tells_starts_faults_and_the_end_in_order(tmp_path):
    run = make_run(tmp_path / "run", LOSSES, (4, 3), begins=(1, 3))
    (run / "launch.log").write_text("2001-01-01 00:00:00 host node2 is lost: no answer\n  more\n")
    rows = tables(read_runs([run]))["GPU counts, faults and resumes"]
    assert [row["what"] for row in rows] == [
        "start 1",
        "ended early",
        "start 2",
        "done",
        "launcher",
    ]
    assert rows[0]["more"] == "4 ranks, steps 1 to 2"
    assert rows[-1]["more"] == "host node2 is lost: no answer"


def test_the_history_tells_a_resize_and_what_its_pause_was_made_of(tmp_path):
    run = make_run(tmp_path / "run", LOSSES, (4, 3), begins=(1, 3))
    pause = {"restart": 2, "step": 2, "lost": 0, "total": 4, "world_size": 3, "pause": 4.0,
             "save": 1.0, "end": None, "first_step": 0.5, "time": 1003.0}  # fmt: skip
    pause |= dict.fromkeys(("start", "imports", "join", "load"), None)
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n" + json.dumps(pause) + "\n")
    rows = tables(read_runs([run]))["GPU counts, faults and resumes"]
    assert [row["what"] for row in rows][1:4] == ["saved", "start 2", "paused for 4.0 s"]
    assert rows[1]["more"] == "resumed by start 2 on 3 ranks"
    assert rows[3]["more"] == "before step 3: save 1.0, first step 0.5"


@pytest.mark.parametrize(
    ("said", "first"),
    [
        ("There is no checkpoint in run/checkpoints: starting from step 0", 1),
        ("Resuming from step_00000002, saved on 4 ranks with ZeRO 0; now 3", 3),
    ],
)
def test_a_start_begins_where_it_says_and_not_at_the_first_step_logged(tmp_path, said, first):
    run = make_run(tmp_path / "run", LOSSES, (4, 3), begins=(1, 3))
    (run / "attempts/0002/log.txt").write_text(f"[info] {said}\n| INFO | [Step 4/9] | Loss: 1 |\n")
    (read,) = read_runs([run])
    assert [start.steps for start in read.starts] == [(1, 2), (first, 4)]


def test_a_narrow_terminal_shows_the_same_in_more_lines(tmp_path, capsys, monkeypatch):
    names = [tmp_path / f"20260131-12010{n}-mistral-tiny" for n in range(2)]
    told = "[12:00:00] rank 3 on node1 was killed by signal 9: starting again from step 2 on 7"
    for n, path in enumerate(names):
        make_run(path, LOSSES, [4 << n], done=not n, lines=[told])
        file = path / "attempts/0001/environment.json"
        words = ["--model-name-or-path", "/models/mistral-7b", "--batch-size", "256"] * 2
        file.write_text(json.dumps(json.loads(file.read_text()) | {"arguments": words}))
    shown = {}
    for width in ("80", "300"):
        monkeypatch.setenv("COLUMNS", width)
        command([*map(str, names), "--text"])
        shown[width] = capsys.readouterr().out
    assert max(map(len, shown["80"].splitlines())) <= 80 < max(map(len, shown["300"].splitlines()))
    for table in tables(read_runs(names)).values():
        for cell in (cell for row in table for cell in row.values()):
            assert all(" ".join(cell.split()) in " ".join(text.split()) for text in shown.values())
    monkeypatch.setenv("COLUMNS", "80")
    (names[0] / "checkpoints/step_00000007").mkdir(parents=True)
    (names[0] / "checkpoints/step_00000007/COMPLETE").write_text("{}")
    command([str(names[0]), "--checkpoints"])
    assert max(map(len, capsys.readouterr().out.replace(str(tmp_path), "").splitlines())) <= 80


def test_the_page_is_one_file_that_escapes_what_it_shows(tmp_path, capsys):
    bad = "<script>alert(1)</script>"
    first = make_run(tmp_path / "<b>x", LOSSES, (1,), done=False, lines=[bad])
    second = make_run(tmp_path / "y", LOSSES, (2,))
    assert command([str(first), str(second), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<b>x" not in page and bad not in page
    assert "&lt;b&gt;x" in page and "&lt;script&gt;" in page
    pictures = {path.stem for path in (tmp_path / "out").glob("*.svg")}
    assert pictures == {"losses", "history", "speed-up", "speed", "memory", "time"}
    assert page.count("<svg") == page.count("</svg>") == len(pictures)
    assert re.findall(r'(?:src|href)="(?!#)', page) == []
    assert "<th>why" not in page and "<div>why: of a CPU rank" in page  # below its row
    assert str(tmp_path / "out" / "index.html") in capsys.readouterr().out


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    paths = [make_run(tmp_path / side / "run", LOSSES, (1,)) for side in ("a", "b")]
    assert [run.name for run in read_runs(paths)] == ["a/run", "b/run"]


@pytest.mark.parametrize("words", [["missing"], ["."], [], ["x", "--txt"]])
def test_a_mistake_is_one_sentence(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        command(words)
    assert "\n" not in str(error.value)


def test_a_folder_without_checkpoints_says_so(tmp_path, capsys):
    run = make_run(tmp_path / "run", LOSSES, (1,))
    assert command([str(run), "--checkpoints"]) == 0
    assert "has no checkpoint" in capsys.readouterr().out
