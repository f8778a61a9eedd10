"""`python -m trtship.session.trial_process`: opens a graph in onnxruntime as told on stdin, and runs it on zeros.

It says "opened" once that is done. An error that onnxruntime raises is none here: the process that asked will meet it.
"""

from __future__ import annotations

import json
import resource
import sys
from contextlib import suppress
from typing import Any

import numpy as np

from trtship.needs import need
from trtship.processes import keep_stdout
from trtship.session.arrays.base import numpy_dtype

SIZES = (1, 32, 224)
"""Tried in turn for the dynamic dimensions, until a run succeeds."""
SILENT = 4
MOST = 2**28
"""Elements of an input beyond which nothing is run."""


def main() -> None:
    """Open and run."""
    answers = keep_stdout()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected, and its core would fill the disk
    graph, providers, level, without = json.loads(sys.stdin.buffer.read())
    ort = need("onnxruntime", purpose="trying an ONNX graph")
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    places = [tuple(one) if isinstance(one, list) else one for one in providers]
    with suppress(Exception):
        session = ort.InferenceSession(graph, options, providers=places, disabled_optimizers=without, enable_fallback=0)
        answers.write(b"opened\n")
        answers.flush()
        for size in SIZES:
            with suppress(Exception):
                session.run(None, {value.name: _zeros(value, size) for value in session.get_inputs()})
                break


def _zeros(value: Any, size: int) -> np.ndarray[Any, Any]:
    shape = [one if isinstance(one, int) else size for one in value.shape]
    if np.prod([float(one) for one in shape]) > MOST:
        raise ValueError("too large for a trial")
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    return np.zeros(shape, numpy_dtype({"float": "float32", "double": "float64"}.get(kind, kind)))


if __name__ == "__main__":
    main()
