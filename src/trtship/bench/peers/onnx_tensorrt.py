"""ONNX -> TensorRT as everybody does it: the half-precision module exported, and built, nothing in between."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import ClassVar

import msgspec

from trtship.bench.peers.base import Peer, Runner, Task, low_dtype
from trtship.bench.plan import plan_runner
from trtship.engine import plan_from_onnx
from trtship.family import choose_family
from trtship.spec import ShapeRange


class OnnxTensorRT(Peer):
    name: ClassVar[str] = "onnx-tensorrt"

    def runners(self, task: Task) -> list[Runner]:
        import torch

        family, _ = choose_family(tf32=task.precision.tf32)
        dtype = low_dtype(task.precision)
        inputs, outputs = (
            tuple(
                msgspec.structs.replace(s, dtype=task.precision.graph_dtype) if s.dtype == "float32" else s
                for s in specs
            )
            for specs in (task.inputs, task.outputs)
        )
        module = copy.deepcopy(task.module).to(dtype)
        example = tuple(torch.from_numpy(task.feeds[s.name][:2].copy()) for s in task.inputs)
        example = tuple(t.to(dtype) if t.is_floating_point() else t for t in example)
        letter = task.inputs[0].shape[0]
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            graph = Path(folder) / "plain.onnx"
            torch.onnx.export(
                module,
                example,
                str(graph),
                dynamo=True,
                verbose=False,
                input_names=[s.name for s in task.inputs],
                output_names=[s.name for s in task.outputs],
                dynamic_shapes=tuple({0: torch.export.Dim(str(letter), min=1, max=2**16)} for _ in task.inputs),
            )
            plan = plan_from_onnx(
                graph,
                family=family,
                inputs=inputs,
                ranges={str(letter): ShapeRange(min=task.batch, opt=task.batch, max=task.batch)},
                precision=task.precision,
            )
        name = f"ONNX -> {family.name}, CUDA graph"
        return [plan_runner(name, plan.data, family, task, inputs=inputs, outputs=outputs)]
