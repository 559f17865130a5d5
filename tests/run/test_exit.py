"""What ends a rank as out of memory, in the words of the libraries, and what does not."""

import errno
import os
import sys

import pytest

from train.config import World
from train.errors import OutOfMemoryError, StopRequested
from train.run.exit import _named, exit_with

NCCL = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled cuda error "
    "(run with NCCL_DEBUG=INFO for details), NCCL version 2.28.9\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\n"
)
MEMORY = [
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of"),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB. GPU 3 has a total capacity of"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("HIP error: out of memory\nHIP kernel errors might be asynchronously reported"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate`"),
    RuntimeError("CUDA error: CUSPARSE_STATUS_ALLOC_FAILED when calling `cusparseCreate(handle)`"),
    RuntimeError(NCCL + "Failed to CUDA calloc async 608 bytes"),
    RuntimeError(NCCL + "Failed to CUDA host alloc 4194304 bytes"),
    RuntimeError(NCCL + "Cuda failure 2 'out of memory'"),
    RuntimeError(NCCL + "Cuda failure 'out of memory'"),
    RuntimeError("HIP failure 'out of memory'"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("Triton Error [HIP]:  Code: 2, Messsage: out of memory"),
    RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
    RuntimeError("hipErrorOutOfMemory"),
    RuntimeError("Pin memory thread exited: CUDA error: out of memory"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("unable to mmap 4976698672 bytes from file <model.safetensors>: Cannot allocate "
                 "memory (12)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't "
                 "allocate memory: you tried to allocate 99999999 bytes. Error code 12"),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
]  # fmt: skip
OTHER = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    RuntimeError("out of resource: shared memory, Required: 147456, Hardware limit: 101376."),
    RuntimeError(NCCL + "Cuda failure 700 'an illegal memory access was encountered'"),
    RuntimeError("NCCL error: remote process exited or there was a network error"),
    OSError(errno.ENOSPC, "No space left on device"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("Failed to CUDA launch"),
]


@pytest.mark.parametrize("error", MEMORY, ids=str)
def test_memory_that_ran_out_is_known_by_every_librarys_words(error):
    named = _named(error)
    assert isinstance(named, OutOfMemoryError)
    assert named.exit_code == 77
    assert "\n" not in str(named)


@pytest.mark.parametrize("error", OTHER, ids=str)
def test_other_faults_are_not_taken_for_it(error):
    assert _named(error) is None


def test_the_line_that_tells_what_ran_out_is_shown():
    assert str(_named(RuntimeError(NCCL + "Cuda failure 2 'out of memory'"))).endswith(
        "Cuda failure 2 'out of memory'"
    )


def test_a_stop_is_told_in_lines_that_fit_a_terminal(monkeypatch, capfd):
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setattr(os, "get_terminal_size", lambda number: os.terminal_size((40, 20)))
    with pytest.raises(SystemExit):
        exit_with(StopRequested("the same command goes on from there " * 4), World.from_env({}))
    assert max(map(len, capfd.readouterr().out.splitlines())) <= 40
