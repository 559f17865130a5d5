import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from train.config import DataConfig, ModelConfig
from train.data.open import open_dataset
from train.data.preset import CONFIG, VOCABULARY, build_preset, library_rows

ROOT = Path(__file__).parents[2]
MODULE = '''
import nothing_like_this_exists

def total(values, start=0):
    """Add numbers up.

    More words.
    """
    for value in values:
        start += value
    return start

class Thing:
    def twice(self):
        """Call it again."""
        def inner():
            """Nothing to write."""
        return inner() + inner()

    def bare(self):
        return 1

async def later():
    """Not plain."""
    return 1
'''


def test_functions_with_docstrings_become_rows_without_importing_their_module(tmp_path):
    (tmp_path / "a.py").write_text(MODULE)
    (tmp_path / "b.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("def :")
    rows = sorted(library_rows(tmp_path), key=lambda row: row["instruction"])
    assert [row["instruction"] for row in rows] == [
        "Write the Python function `total(values, start)`.",
        "Write the Python function `twice(self)`.",
    ]
    assert rows[0]["input"] == "Add numbers up."
    assert rows[0]["output"].splitlines() == [
        "def total(values, start=0):",
        "    for value in values:",
        "        start += value",
        "    return start",
    ]
    assert rows[1]["output"].startswith("def twice(self):\n    def inner():\n")


def test_the_same_interpreter_gives_the_same_preset(preset, tmp_path):
    code = "import sys; from pathlib import Path; from train.data.preset import build_preset; "
    code += "build_preset(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True)
    first = preset
    again = build_preset(tmp_path)
    names = sorted(path.name for path in first.model.iterdir())
    assert names == sorted(path.name for path in again.model.iterdir())
    for one, other in zip(
        [first.dataset, *(first.model / name for name in names)],
        [again.dataset, *(again.model / name for name in names)],
        strict=True,
    ):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_the_rows_are_many_short_and_different(preset):
    rows = [json.loads(line) for line in preset.dataset.read_text().splitlines()]
    assert len(rows) > 1500
    assert len({row["output"] for row in rows}) == len(rows)
    assert all(set(row) == {"instruction", "input", "output"} for row in rows)


def test_a_second_call_builds_nothing(preset, shared_cache):
    before = preset.dataset.stat().st_mtime_ns
    assert build_preset(shared_cache) == preset
    assert preset.dataset.stat().st_mtime_ns == before


def test_the_model_is_one_that_transformers_loads_whole(preset):
    from transformers import AutoConfig, AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(preset.model, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert AutoConfig.from_pretrained(preset.model).model_type == CONFIG["model_type"]
    weight = model.model.layers[0].mlp.up_proj.weight.detach().numpy()
    assert abs(weight.std() / CONFIG["initializer_range"] - 1) < 0.02
    assert np.all(model.model.norm.weight.detach().numpy() == 1)


def test_the_preset_opens_as_a_dataset_within_its_vocabulary(preset, tmp_path):
    data = open_dataset(
        DataConfig(str(preset.dataset), None, False, 8, 512, 0),
        ModelConfig(str(preset.model), None, "fp32", None, False),
        tmp_path,
    )
    assert len(data.train) > 1500 and data.tokenizer.vocab_size == VOCABULARY
    assert max(data.train.sample(number)[0].max() for number in range(200)) < VOCABULARY
    assert 20 < data.train.lengths.mean() < 300
