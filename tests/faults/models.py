"""Other models, exporters, opsets, passes, precisions and batch ranges: each is right, and must pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from judging import Judged, opener

from graphs import SMALL, small_model
from trtship.export import export_source
from trtship.graphs import load_graph, rounding_bound
from trtship.graphs.rounding import QUANTILE
from trtship.passes import to_precision
from trtship.passes.optimization import optimize
from trtship.passes.registry import find_passes
from trtship.session.torch import TorchSession
from trtship.sources import SourceOptions
from trtship.spec import Precision, ShapeRange, TensorSpec, batch_range
from trtship.verify import Verdict, attack, compare
from trtship.verify.bounds import derive_bounds
from trtship.verify.locate_graph import typed
from trtship.verify.reference import make_reference

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


@dataclass(frozen=True)
class Model:
    """`export` writes the module's fp32 graph; `size` is the side of its pictures."""

    name: str
    make: Callable[[], torch.nn.Module]
    size: int
    precision: Precision
    batch: str


def vit() -> torch.nn.Module:
    import timm

    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 7}
    return timm.create_model("vit_tiny_patch16_224", **shape).eval()


MODELS = (
    Model("swin", lambda: small_model("swin"), SMALL["swin"][1], Precision.FP16, "1:2:4"),
    Model("swinv2", lambda: small_model("swinv2"), SMALL["swinv2"][1], Precision.FP16, "3"),
    Model("convnext", lambda: small_model("convnext"), SMALL["convnext"][1], Precision.BF16, "2:5:7"),
    Model("vit", vit, 32, Precision.FP16, "1"),
)


def export_by_torchscript(model: Model, path: Path) -> Path:
    axes = {"input": {0: "B"}, "logits": {0: "B"}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.make(),
            (torch.randn(2, 3, model.size, model.size),),
            str(path),
            dynamo=False,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=18,
        )
    return path


def verdicts_on(model: Model, graph: Path, folder: Path) -> tuple[Verdict, ...]:
    """The graph in its precision, after all passes, against eager PyTorch, with the bounds that a deploy derives."""
    fast, low = folder / "fast.onnx", folder / "low.onnx"
    optimize(graph, fast, thaws=False, together=True)
    to_precision(fast, low, model.precision)
    inputs = (TensorSpec(name="input", shape=("B", 3, model.size, model.size)),)
    outputs = (TensorSpec(name="logits", shape=("B", 10)),)
    with TorchSession(model.make(), inputs=inputs, outputs=outputs) as original:
        reference = make_reference(original, sizes={})
    counted = rounding_bound(load_graph(fast), Precision.FP32)
    path = rounding_bound(load_graph(low), model.precision).bound / QUANTILE
    subject, ranges = f"graph {model.precision.value}", {"B": ShapeRange.parse(model.batch)}
    bound = derive_bounds(low, model.precision, reference, counted=counted, path=path)[subject]
    opens = opener(typed(low))
    with opens() as session:
        batches = batch_range(inputs, ranges).sizes_to_check
        compared = compare(session, reference, subject=subject, batches=batches, bound=bound)
        probed = attack(opens, reference, subject=subject, ranges=ranges, bound=bound, session=session)
    return compared, *probed


PASSES: dict[str, Sequence[str]] = {
    "no passes": (),
    "windows into heads alone": ("windows-into-heads",),
    "patch embedding and window order": ("patch-embedding", "window-order"),
}
"""Of the digits Swin, exported anew at opset 17 and not simplified."""


def export_digits(path: Path, *, opset: int = 17) -> Path:
    options = SourceOptions(source=f"{DIGITS}/model.py:digits_swin", checkpoint=str(DIGITS / "digits.safetensors"))
    export_source(options, path, ranges={}, opset=opset, exporter="torchscript")
    return path


def verdicts_with(judged: Judged, graph: Path, passes: Sequence[str], folder: Path) -> tuple[Verdict, ...]:
    fast, low = folder / "fast.onnx", folder / "low.onnx"
    optimize(graph, fast, passes=find_passes(passes), thaws=False, together=True)
    to_precision(fast, low, judged.precision)
    return judged.verdicts(opener(typed(low)))
