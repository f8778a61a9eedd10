"""Torch-TensorRT's dynamo front end, inside a CUDA graph (its documentation's `enable_cudagraphs`).

Its recommendation for fp16 and bf16 is a model in that type, compiled with explicit typing.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from trtship.bench.peers.base import Peer, Runner, Task, low_dtype, torch_runner
from trtship.needs import need


class TorchTensorRT(Peer):
    name: ClassVar[str] = "torch-tensorrt"

    def runners(self, task: Task) -> list[Runner]:
        import torch

        torch_tensorrt: Any = need("torch_tensorrt", purpose="the peer Torch-TensorRT")
        dtype = low_dtype(task.precision)
        module = copy.deepcopy(task.module).cuda().to(dtype)
        example = [torch.from_numpy(task.feeds[s.name]).cuda() for s in task.inputs]
        example = [t.to(dtype) if t.is_floating_point() else t for t in example]
        with torch.inference_mode():
            exported = torch.export.export(module, tuple(example))
        compiled = torch_tensorrt.dynamo.compile(
            exported, arg_inputs=example, use_explicit_typing=True, min_block_size=1, truncate_double=True
        )
        return [torch_runner("Torch-TensorRT, CUDA graph", compiled, task, dtype=dtype, captures=True)]
