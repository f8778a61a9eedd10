"""The inspector needs the plan loaded, and so a GPU; what it says is what the build's log said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from graphs import ATTENTION, ATTENTION_INPUTS, written
from trtship.engine import kernels_of, plan_from_onnx
from trtship.engine.layer_text import layers_from_text
from trtship.family import choose_family
from trtship.family.logger import recording_layers
from trtship.session.tensorrt import TensorRTSession
from trtship.spec import Precision, ShapeRange


def test_the_inspector_lists_the_layers_that_the_log_lists(tmp_path: Path) -> None:
    graph = written(tmp_path / "m.onnx", ATTENTION, bias=np.zeros((1, 4, 49, 49), np.float16))
    family, _ = choose_family()
    with recording_layers(family.module) as said:
        plan = plan_from_onnx(
            graph,
            family=family,
            inputs=ATTENTION_INPUTS,
            ranges={"B": ShapeRange(min=1, opt=4, max=8)},
            precision=Precision.FP16,
        )
    assert plan.layers.source == "engine inspector", plan.layers.reason
    (block,) = kernels_of(graph, plan.layers).attention
    assert (block.maps, block.tokens, block.depth) == (4, 49, 32)
    assert block.state in ("fused", "not fused")
    if family.is_rtx:
        logged, unread = layers_from_text(said[-1])
        assert unread == 0
        assert [(one.name, one.kind, one.nodes) for one in plan.layers.layers] == [
            (one.name, one.kind, one.nodes) for one in logged
        ]


def test_the_profiler_names_the_layers_as_the_inspector_does(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    graph = written(tmp_path / "m.onnx", ATTENTION, bias=np.zeros((1, 4, 49, 49), np.float16))
    family, _ = choose_family()
    ranges = {"B": ShapeRange(min=1, opt=4, max=8)}
    plan = plan_from_onnx(
        graph, family=family, inputs=ATTENTION_INPUTS, ranges=ranges, single=(4,), precision=Precision.FP16
    )
    feeds = {spec.name: np.ones(spec.with_sizes({"B": 4}), np.float16) for spec in ATTENTION_INPUTS}
    with TensorRTSession(plan.data, family) as session:
        times = session.layer_times(feeds, runs=5)
    record_property("milliseconds", times)
    assert all(ms >= 0 for ms in times.values())
    assert times.keys() & {layer.name for layer in plan.layers.layers if layer.profile == 1}
