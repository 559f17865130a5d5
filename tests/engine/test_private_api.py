"""The private parts of libraries that are used, each in one file, still exist.

pyproject.toml lets a newer version of a library in when this passes with it.
"""

import inspect
from pathlib import Path

import deepspeed
import pytest
import torch
from deepspeed.ops.op_builder.cpu.comm import ShareMemCommBuilder
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import mixed_precision_linkage


@pytest.mark.parametrize(
    "name",
    [
        "get_param_id",
        "_reassign_or_swap_out_partitioned_parameters",
        "invalidate_secondary_tensor",
    ],
)
def test_zero_3_has_the_methods_that_zero_py_calls(name):
    assert callable(getattr(DeepSpeedZeroOptimizer_Stage3, name))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (DeepSpeedZeroOptimizer_Stage3, "grad_position"),
        (DeepSpeedZeroOptimizer_Stage3, "fp32_partitioned_groups_flat"),
        (DeepSpeedZeroOptimizer_Stage3, "persistent_parameters"),
        (DeepSpeedZeroOptimizer, "single_partition_of_fp32_groups"),
        (BF16_Optimizer, "fp32_groups_flat_partition"),
    ],
)
def test_the_optimizers_have_the_attributes_that_zero_py_reads(kind, name):
    assert f"self.{name}" in inspect.getsource(kind)


@pytest.mark.parametrize("kind", [DeepSpeedZeroOptimizer, BF16_Optimizer])
def test_the_low_precision_copy_can_be_made_anew(kind):
    assert callable(kind.update_lp_params)


def test_parameters_are_linked_to_their_fragments():
    assert "_hp_mapping" in inspect.getsource(mixed_precision_linkage)


def test_only_the_shared_memory_op_is_looked_up_among_the_compatible_ones():
    root = Path(deepspeed.__file__).parent
    asking = [
        path for path in root.rglob("*.py") if "ops.__compatible_ops__" in path.read_text("utf-8")
    ]
    assert asking == [root / "comm" / "torch.py"]
    assert ".get(builder.NAME, False)" in asking[0].read_text("utf-8")
    assert ShareMemCommBuilder.NAME == "deepspeed_shm_comm"


def test_a_builds_folder_is_known_beforehand():
    from torch.utils.cpp_extension import _get_build_directory

    assert set(inspect.signature(_get_build_directory).parameters) >= {"name", "verbose"}


def test_weights_can_be_put_back_into_the_form_of_their_files():
    from transformers.core_model_loading import revert_weight_conversion

    assert len(inspect.signature(revert_weight_conversion).parameters) >= 2


def test_the_store_of_one_process_exists():
    assert torch.distributed.HashStore is not None


def test_a_chat_template_is_compiled_once_by_its_text():
    from transformers.utils.chat_template_utils import _compile_jinja_template

    text = "{{ messages[0].content }}{% generation %}{% endgeneration %}"
    compiled = _compile_jinja_template(text)
    assert compiled is _compile_jinja_template(text)
    assert compiled.render(messages=[{"content": "a"}]) == "a"


def test_a_parameter_can_be_divided_alone_and_buffers_made_as_loading_makes_them():
    import transformers
    from deepspeed.runtime.utils import is_model_parallel_parameter

    assert callable(deepspeed.zero.Init._convert_to_zero_parameters)
    assert callable(transformers.PreTrainedModel._init_weights)
    assert {"all_reduce", "wait_tensor"} <= set(dir(torch.ops._c10d_functional))
    parameter = torch.nn.Parameter(torch.ones(1))
    assert not is_model_parallel_parameter(parameter)
    parameter.model_parallel = True
    assert is_model_parallel_parameter(parameter)
