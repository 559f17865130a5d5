"""Which variables reach the ranks of other hosts, beyond the few that DeepSpeed forwards.

They travel inside the connection, never on a command line; their names are shown, no value is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

PREFIXES = (
    "ACCELERATE_", "AMD_", "AWS_", "AZURE_", "CUBLAS_", "CUDA_", "CUDNN_", "DEEPSPEED_", "DS_",
    "FI_", "FLASH_", "GLOO_", "GOOGLE_", "HF_", "HIP_", "HSA_", "HUGGING", "KMP_", "MIOPEN_",
    "MKL_", "MLFLOW_", "NCCL_", "NVIDIA_", "NVTE_", "OMP_", "PYTHON", "PYTORCH_", "RCCL_",
    "ROCM_", "S3_", "SAFETENSORS_", "TENSORBOARD_", "TOKENIZERS_", "TORCH", "TRANSFORMERS_",
    "TRITON_", "UCX_", "WANDB_", "XDG_CACHE_",
)  # fmt: skip
NAMES = (
    "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LD_PRELOAD", "PATH", "TMPDIR", "HTTP_PROXY",
    "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
)  # fmt: skip
# Each host has its own devices, and the launcher of each host names them to its ranks.
_OWN = re.compile(r"(CUDA|HIP|ROCR|NVIDIA)_VISIBLE_DEVICES|PYTHONPATH|PYTHONHOME")


def forwarded(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that other hosts' ranks are given."""
    return {
        name: value
        for name, value in sorted(env.items())
        if (name in NAMES or name.startswith(PREFIXES)) and not _OWN.fullmatch(name)
    }
