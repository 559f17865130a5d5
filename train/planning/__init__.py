"""How one optimizer step is laid out: predicted, chosen, explained, told to DeepSpeed."""

from train.planning.advice import pin_cost, scaling_warning, unknown_gpu, with_advice
from train.planning.catalog import built_in, built_in_names
from train.planning.cluster import Cluster, cluster_of
from train.planning.dsconfig import DsConfig, read_ds_config
from train.planning.explain import compare, explain, log_lines
from train.planning.families import shape_of
from train.planning.hardware import Gpu, find_gpu
from train.planning.models import find_shape
from train.planning.pins import Implementation, Pins, merge_pins
from train.planning.plan import Plan
from train.planning.render import render
from train.planning.request import Candidate, Choice, PlanRequest
from train.planning.search import choose
from train.planning.shape import Shape

__all__ = [
    "Candidate", "Choice", "Cluster", "DsConfig", "Gpu", "Implementation", "Pins", "Plan",
    "PlanRequest", "Shape", "built_in", "built_in_names", "choose", "cluster_of", "compare",
    "explain", "find_gpu", "find_shape", "log_lines", "merge_pins", "pin_cost", "read_ds_config",
    "render", "scaling_warning", "shape_of", "unknown_gpu", "with_advice",
]  # fmt: skip
