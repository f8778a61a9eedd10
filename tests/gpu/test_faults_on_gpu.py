"""Planted defects in real plans: verify catches them, and debug names the node, or says that the plan is another's.

python -m pytest tests/gpu/test_faults_on_gpu.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx_ir as ir
import pytest
from defects import DEFECTS
from judging import Judged, failed

import trtship
from deployed import MAKERS, copy_of, reseal
from trtship.bundle.debug import debug_bundle
from trtship.engine import plan_from_onnx
from trtship.family import Family, choose_family
from trtship.session.base import Session
from trtship.session.tensorrt import TensorRTSession

Digits = Callable[[str], Judged]
BY_NAME = {defect.name: defect for defect in DEFECTS}
IN_PLANS = (
    "batch leakage",
    "heads swapped",
    "mask dropped",
    "stale weights",
    "layer norm overflows",
    "int8 saturates",
    "input clipped",
    "constant image",
)


@pytest.fixture(scope="module")
def digits(gpu_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Digits:
    folder = tmp_path_factory.mktemp("digits")
    return cache(lambda precision: Judged(MAKERS["digits"](folder, precision)))


def family_of(judged: Judged) -> Family:
    return choose_family(judged.bundle.manifest.family, tf32=judged.precision.tf32)[0]


def built(judged: Judged, model: ir.Model, folder: Path) -> bytes:
    """The plan of an edited graph, for the bundle's range of batches alone."""
    m = judged.bundle.manifest
    ir.save(model, folder / "planted.onnx")
    return plan_from_onnx(
        folder / "planted.onnx",
        family=family_of(judged),
        inputs=m.plan_inputs,
        ranges=m.ranges,
        precision=judged.precision,
    ).data


@pytest.mark.parametrize("name", IN_PLANS)
def test_a_defect_of_a_plan_is_caught(
    digits: Digits, name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    defect = BY_NAME[name]
    judged = digits(defect.precision)
    model = judged.graph()
    defect.plant(model)
    m, plan = judged.bundle.manifest, built(judged, model, tmp_path)

    def opens() -> Session:
        return TensorRTSession(plan, family_of(judged), inputs=m.plan_inputs, outputs=m.plan_outputs)

    caught = failed(judged.verdicts(opens, is_plan=True))
    record_property("caught_by", sorted(caught))
    assert caught >= set(defect.caught_by)


def test_debug_says_of_a_stale_plan_that_it_is_of_another_graph(digits: Digits, tmp_path: Path) -> None:
    judged = digits("fp16")
    copy = copy_of(judged.bundle.folder, tmp_path)
    model = judged.graph()
    BY_NAME["stale weights"].plant(model)
    (copy / judged.bundle.manifest.plan).write_bytes(built(judged, model, tmp_path))
    bundle = reseal(copy, profiles=())
    verdicts = {v.gate: v for v in trtship.verify_bundle(bundle) if v.subject == "plan"}
    assert verdicts["rel_l2"].state == "failed"
    report = debug_bundle(bundle, output=tmp_path / "fault")
    assert report.wrong is not None
    assert (report.wrong.subject, report.wrong.located) == ("plan", None)
    assert "it was built from another graph" in report.wrong.reason
    assert not (tmp_path / "fault").exists()


@pytest.mark.parametrize("name", ["heads swapped", "layer norm overflows"])
def test_debug_names_the_node_that_is_wrong_in_the_plan_alone(
    digits: Digits, name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The plan, and what the search builds to look inside it, come from the planted graph; onnxruntime is told that of
    the right one. It stands for a TensorRT that computes a graph wrongly."""
    judged = digits("fp16")
    model, m = judged.graph(), judged.bundle.manifest
    guilty = BY_NAME[name].plant(model)
    located = judged.locate_in_plan(model, family_of(judged), inputs=m.plan_inputs, outputs=m.plan_outputs)
    assert located is not None
    record_property("node", located.node)
    record_property("looked_at", len(located.looked_at))
    assert located.node in guilty
