"""The process's settings around a run of a PyTorch module: set for the run, and afterwards as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


@contextmanager
def full_fp32(torch: Any) -> Iterator[None]:
    """Multiply fp32 in fp32, on the GPU and on the CPU, whatever the user has set.

    It goes through `fp32_precision`, since PyTorch's older switches can neither be read nor restored once both kinds
    were used.
    """
    backends = torch.backends
    places = (
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
    )
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


@contextmanager
def unchanged_state(torch: Any) -> Iterator[None]:
    """Restore what a model's code can change for the whole process.

    These are the random numbers of torch (CPU, and the GPUs in use), numpy and Python, torch's default dtype, grad
    mode, deterministic algorithms and cuDNN's switches.
    """
    cudnn = torch.backends.cudnn
    cuda = torch.cuda.is_initialized()
    numbers, arrays, python = torch.get_rng_state(), np.random.get_state(), random.getstate()
    on_gpus = torch.cuda.get_rng_state_all() if cuda else []
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    switches = cudnn.enabled, cudnn.benchmark, cudnn.deterministic
    try:
        yield
    finally:
        torch.set_rng_state(numbers)
        np.random.set_state(arrays)
        random.setstate(python)
        if cuda:
            torch.cuda.set_rng_state_all(on_gpus)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = switches
