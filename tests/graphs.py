"""Graphs for tests: written by hand in ONNX's text form, or exported from small timm models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import torch

from trtship.spec import TensorSpec

HEADER = '<ir_version: 10, opset_import: ["": {opset}]> g '


def model_of(body: str, *, opset: int = 20, **tensors: Any) -> onnx.ModelProto:
    """`model_of("(float[B, 4] x) => (float[B, 4] y) { y = Mul(x, w) }", w=array)`: arrays become initializers."""
    model = onnx.parser.parse_model(HEADER.format(opset=opset) + body)
    for name, array in tensors.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def written(path: Path, body: str, *, opset: int = 20, **tensors: Any) -> Path:
    onnx.save(model_of(body, opset=opset, **tensors), path)
    return path


def ops(path: Path) -> list[str]:
    """The operators of a graph, in order."""
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


ATTENTION = """(float16[B, 4, 49, 32] q, float16[B, 4, 32, 49] k, float16[B, 4, 49, 32] v)
  => (float16[B, 4, 49, 32] y) {
    p = MatMul(q, k) s = Add(p, bias) w = Softmax<axis = -1>(s) y = MatMul(w, v)
}"""
ATTENTION_INPUTS = tuple(
    TensorSpec(name=name, shape=("B", 4, *last), dtype="float16")
    for name, last in (("q", (49, 32)), ("k", (32, 49)), ("v", (49, 32)))
)
"""What `ATTENTION` takes: it becomes one kernel."""


def _swin() -> Any:
    import timm

    return timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, embed_dim=24, depths=(2, 2), num_heads=(2, 4), num_classes=10
    )


def _swinv2() -> Any:
    import timm

    return timm.create_model(
        "swinv2_tiny_window8_256", img_size=64, embed_dim=24, depths=(2, 2), num_heads=(2, 4), num_classes=10
    )


def _convnext() -> Any:
    import timm

    return timm.create_model("convnext_atto", dims=(16, 32, 64, 96), depths=(1, 1, 2, 1), num_classes=10)


SMALL: dict[str, tuple[Callable[[], Any], int]] = {
    "swin": (_swin, 56),
    "swinv2": (_swinv2, 64),
    "convnext": (_convnext, 64),
}
"""Name -> (constructor, height and width of its pictures)."""


def small_model(name: str) -> Any:
    """In eval mode, with seeded weights that keep a signal's size, as trained ones do.

    A fresh timm model would hide most mistakes: its biases are 0, its scales 1, and its attention nearly flat.
    """
    model = SMALL[name][0]().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "relative_position_bias_table" in key:
                parameter.copy_(noise)
            elif parameter.ndim > 1 and "logit_scale" not in key:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            elif key.endswith("bias"):
                parameter.copy_(0.2 * noise)
            elif key.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
    return model


def pictures(name: str, batch: int, *, seed: int = 5) -> torch.Tensor:
    """[batch, 3, H, W], float32, normal."""
    size = SMALL[name][1]
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def export_small(name: str, path: Path) -> None:
    """As ONNX, traced at batch 2, with a dynamic batch `B`."""
    torch.onnx.export(
        small_model(name),
        (pictures(name, 2),),
        str(path),
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("B", min=1, max=64)},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
