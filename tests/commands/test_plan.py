import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from train.commands.plan import command
from train.errors import PlanError, UserError

ROOT = Path(__file__).resolve().parents[2]
BASE = ["--num-gpus", "4", "--gpu", "A100-SXM-80GB"]


def planned(capsys, *argv):
    code = command([*BASE, "--json", *argv])
    return code, json.loads(capsys.readouterr().out)


def test_json_has_the_agreed_keys(capsys):
    code, found = planned(capsys, "--model-name-or-path", "llama-3-8b")
    assert code == 0
    assert set(found) == {
        "candidates", "possible", "seconds", "chosen", "nearest", "rejected", "table",
    }  # fmt: skip
    assert len(found["table"]) == found["candidates"]
    assert found["possible"] == sum(row["fits"] for row in found["table"])
    chosen = found["chosen"]
    assert set(chosen) == {
        "plan", "memory", "host_memory", "time", "tokens_per_s", "tokens_per_s_per_gpu", "mfu",
        "fits", "reason",
    }  # fmt: skip
    memory = dict(chosen["memory"])
    assert memory.pop("total") == pytest.approx(sum(memory.values()))
    assert set(memory) == {
        "weights", "gradients", "optimizer", "activations", "logits", "buffers", "reserve",
    }  # fmt: skip
    time = dict(chosen["time"])
    assert time.pop("total") == pytest.approx(sum(time.values()))
    assert set(time) == {"compute", "communication", "pipeline", "offload"}
    assert chosen["tokens_per_s"] == pytest.approx(4 * chosen["tokens_per_s_per_gpu"])
    tokens = chosen["tokens_per_s"] * chosen["time"]["total"]
    assert tokens == pytest.approx(256 * 1024)


def test_with_every_key_pinned_it_is_a_predictor(capsys):
    pins = ["zero=1", "micro_tokens=2048", "recompute=none", "offload=none", "dp=2", "tp=2",
            "pp=1", "sp=1", "attention=flash", "kernels=fused"]  # fmt: skip
    _, found = planned(capsys, "--pin", *pins, "--block-size", "2048")
    assert found["candidates"] == 1
    plan = found["table"][0]["plan"]
    assert (plan["tp"], plan["dp"], plan["accumulation"]) == (2, 2, 128)


def test_what_cannot_fit_exits_2_and_says_what_would(capsys):
    code, found = planned(capsys, "--model-name-or-path", "llama-3-405b")
    assert (code, found["chosen"], found["possible"]) == (2, None, 0)
    assert "GiB" in found["nearest"]
    assert "GPUs" in found["nearest"] or "--use-lora" in found["nearest"]


def test_the_explanation_names_the_plan_what_pins_cost_and_where_gpus_stop_helping(capsys):
    argv = [*BASE, "--batch-size", "8", "--pin", "recompute=full", "offload=optimizer"]
    assert command(argv) == 0
    text = capsys.readouterr().out
    assert "The number of candidates is " in text
    assert "No PP, No TP, recomputation : full" in text
    assert "cost" in text and "of a step's time" in text
    assert command(["--num-nodes", "8", *BASE, "--batch-size", "2", "--pin", "recompute=full"]) == 0
    assert "No PP, No TP, SP : " in (text := capsys.readouterr().out)
    assert "GPUs without work: use fewer" in text


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--gpu", "A100-SXM-80GB"], "how many GPUs"),
        (["--num-gpus", "4"], "which GPU"),
        ([*BASE, "--gpu", "A1000"], "there is no GPU 'A1000'"),
        ([*BASE, "--gpu", "MI30OX"], "did you mean 'MI300X'"),
        ([*BASE, "--batchsize", "3"], "did you mean '--batch-size'"),
        ([*BASE, "--batch-size", "0"], "at least 1"),
        ([*BASE, "--pin", "zero"], "key=value"),
        ([*BASE, "--pin", "zeros=1"], "did you mean 'zero'"),
        ([*BASE, "--pin", "zero=1", "--pin", "zero=2"], "twice"),
        ([*BASE, "--pin", "tp=3"], "does not divide"),
        ([*BASE, "--precision", "fp8"], "invalid choice"),
        ([*BASE, "--hostfile", "absent"], "hostfile 'absent' does not exist"),
    ],
)
def test_mistakes_are_one_sentence(argv, part):
    with pytest.raises(UserError, match=part) as caught:
        command(argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["32xMI250", "64xMI210", "16xMI300X"])
@pytest.mark.parametrize("batch", ["256", "512", "1024"])
def test_the_originals_runs_are_planned_from_their_hostfiles(capsys, name, batch):
    path = ROOT / "hostfiles/examples" / name
    assert command(["--hostfile", str(path), "--batch-size", batch]) == 0
    assert "Configuration for parallelism is selected." in capsys.readouterr().out


def test_a_hostfile_gives_hosts_and_hardware_and_the_command_line_wins(tmp_path, capsys):
    path = tmp_path / "hosts"
    path.write_text("#: gpu=H100-SXM nic=8x400Gb\na slots=8\nb slots=8\n")
    command(["--hostfile", str(path), "--json"])
    assert json.loads(capsys.readouterr().out)["chosen"]["plan"]["dp"] == 16
    words = ["--num-nodes", "1", "--num-gpus", "2", "--gpu", "H200"]
    command(["--hostfile", str(path), *words])
    assert "2 x H200" in capsys.readouterr().out
    with pytest.raises(PlanError, match="the hostfile has 2 hosts"):
        command(["--hostfile", str(path), "--num-nodes", "3"])
    with pytest.raises(PlanError, match="fewer slots"):
        command(["--hostfile", str(path), "--num-gpus", "9"])


def test_a_plan_needs_no_third_party_module_and_half_a_second_of_the_processor():
    words = [sys.executable, "-I", "-S", "-c",
             f"import sys; sys.path.insert(0, {str(ROOT)!r}); from train.cli import main; "
             "main(['plan', '--num-gpus', '8', '--gpu', 'H100-SXM'])"]  # fmt: skip
    before = os.times()
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    after = os.times()
    assert done.returncode == 0, done.stderr
    spent = after.children_user + after.children_system
    assert spent - before.children_user - before.children_system < 0.5
