"""onnxruntime with its CUDA provider, on the simplified graph in the bundle's precision, buffers bound on the GPU."""

from __future__ import annotations

from typing import Any, ClassVar

from trtship.bench.peers.base import Peer, Runner, Task
from trtship.session.onnxruntime import OnnxRuntimeSession


class OnnxRuntimeCuda(Peer):
    name: ClassVar[str] = "onnxruntime"

    def runners(self, task: Task) -> list[Runner]:
        import torch

        session = OnnxRuntimeSession(task.graph, providers="cuda")
        dtypes = {s.name: s.dtype for s in session.inputs}

        def typed(feeds: dict[str, Any]) -> dict[str, Any]:
            return {k: v.astype(dtypes[k], copy=False) if v.dtype.kind == "f" else v for k, v in feeds.items()}

        tensors = {name: torch.from_numpy(array).cuda() for name, array in typed(task.feeds).items()}
        first = task.outputs[0].name
        return [
            Runner(
                name="onnxruntime, CUDA provider",
                run=lambda: session.infer(tensors)[first],
                host=lambda feeds: session.infer(typed(feeds))[first],
                captures=False,
                close=session.close,
            )
        ]
