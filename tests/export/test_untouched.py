"""Loading, checking and exporting leave the user's module and the process as they were."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trtship.errors import GraphError
from trtship.export import EXPORTERS, graph_from_source
from trtship.progress import SILENT
from trtship.sources.finish import finish
from trtship.spec import TensorSpec


class Net(nn.Module):
    """All that a cast, an eval() or a run could damage: dtypes, flags, hooks, counters, caches, gradients."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8)
        self.head = torch.nn.utils.weight_norm(nn.Linear(8, 5))
        self.head.bias.requires_grad_(False)
        self.norm.eval()
        self.register_buffer("phase", torch.polar(torch.rand(8), 3 * torch.rand(8)))
        self.register_buffer("origin", torch.tensor([1e8 + 1.0], dtype=torch.float64))
        self.register_buffer("scale", torch.tensor([0.5], dtype=torch.float16))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.sizes: list[int] = []
        self.seen: list[int] = []
        self.conv.register_forward_hook(lambda module, inputs, output: self.seen.append(1))
        self.norm.register_forward_pre_hook(lambda module, inputs: None)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        image.sub_(0.5)
        x = self.norm(self.conv(image)).mean((2, 3))
        x = (x * self.phase).abs() * self.scale
        return self.head(((x.double() + self.origin) - 1e8).float())


def state(module: Net) -> dict[str, Any]:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    cudnn = torch.backends.cudnn
    numbers: Any = np.random.get_state()
    return {
        "tensors": {n: (t.dtype, t.device, t.requires_grad, t.data_ptr(), t.tolist()) for n, t in tensors.items()},
        "training": {name: part.training for name, part in module.named_modules()},
        "hooks": {
            name: (list(part._forward_hooks.values()), list(part._forward_pre_hooks.values()))
            for name, part in module.named_modules()
        },
        "gradients": {n: p.grad for n, p in module.named_parameters()},
        "attributes": (list(module.sizes), list(module.seen)),
        "random numbers": (torch.get_rng_state().tolist(), numbers[1].tolist(), random.getstate()),
        "process": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_float32_matmul_precision()),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, torch.backends.mkldnn.matmul.fp32_precision),
    }


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_nothing_of_the_users_module_or_of_the_process_changes(exporter: str, tmp_path: Path) -> None:
    module = Net()
    before = state(module)
    model = finish("net.py:net", module, (TensorSpec.parse("image=Bx3x16x16"),), progress=SILENT)
    assert state(module) == before
    refused = contextlib.nullcontext() if exporter == "dynamo" else pytest.raises(GraphError, match="torchscript")
    with refused:  # the TorchScript exporter takes no complex tensors
        graph_from_source(model, tmp_path / "m.onnx", ranges={}, exporter=exporter)
    after = state(module)
    assert {key: after[key] == before[key] for key in before} == dict.fromkeys(before, True)
