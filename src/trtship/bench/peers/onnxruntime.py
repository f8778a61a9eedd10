"""onnxruntime with its CUDA provider, on the simplified graph in the bundle's precision, buffers bound on the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from trtship.bench.peers.base import Peer, Runner, Task
from trtship.session.onnxruntime import OnnxRuntimeSession


class OnnxRuntime(Peer):
    name: ClassVar[str] = "onnxruntime"
    needs_module: ClassVar[bool] = False

    def runners(self, task: Task) -> Iterator[Runner]:
        import torch

        session = OnnxRuntimeSession(task.graph, providers="cuda" if task.device == "cuda" else "cpu")
        inputs = {
            s.name: torch.from_numpy(task.feeds[s.name]).to(task.device).to(getattr(torch, s.dtype), copy=True)
            for s in session.inputs
        }
        first = task.outputs[0].name
        yield Runner(
            name=f"onnxruntime, {task.device.upper()} provider",
            inputs=inputs,
            run=lambda: session.infer(inputs)[first],
            captures=False,
            runtime=session.runtime,
            close=session.close,
        )
