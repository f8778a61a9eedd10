"""`trtship debug` on whole bundles with a defect in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import onnx
import onnx_ir as ir
import pytest
from defects import DEFECTS
from judging import Judged
from models import export_digits

from deployed import copy_of, reseal
from trtship.bundle import Bundle
from trtship.bundle.debug import debug_bundle, reproduce
from trtship.errors import BundleError, DeviceError, OutputError
from trtship.gpu import list_gpus
from trtship.verify.locate_report import LOADER, bug_report
from trtship.verify.locate_runs import GraphRuns

Digits = Callable[[str], Judged]
BY_NAME = {defect.name: defect for defect in DEFECTS}
no_gpu = pytest.mark.skipif(bool(list_gpus()), reason="this machine has a GPU")


def spoilt(judged: Judged, name: str, folder: Path) -> tuple[Bundle, tuple[str, ...]]:
    """A copy of the bundle with a defect in the graph that its plan is built from, and the guilty nodes."""
    copy = copy_of(judged.bundle.folder, folder)
    model = judged.graph()
    guilty = BY_NAME[name].plant(model)
    ir.save(model, copy / judged.bundle.manifest.precision_graph)
    return reseal(copy), guilty


@no_gpu
def test_a_bundle_that_is_right_is_found_right(digits: Digits) -> None:
    report = debug_bundle(digits("fp16").bundle)
    assert {f.subject: f.state for f in report.findings} == {
        "graph fp32": "right",
        "graph fp16": "right",
        "plan": "not run",
    }
    assert "no NVIDIA GPU" in report.findings[-1].reason


def test_the_guilty_node_its_reproduction_and_a_text_about_it(digits: Digits, tmp_path: Path) -> None:
    bundle, guilty = spoilt(digits("fp16"), "heads swapped", tmp_path)
    report = debug_bundle(bundle, output=tmp_path / "fault")
    wrong = report.wrong
    assert wrong is not None
    assert wrong.located is not None
    assert (wrong.subject, wrong.located.node) == ("graph fp16", *guilty)
    assert wrong.case == "the reference rows, B=1"
    assert len(wrong.located.looked_at) < 0.15 * wrong.located.comparable
    minimal = onnx.load(tmp_path / "fault" / "minimal.onnx")
    assert [node.op_type for node in minimal.graph.node if node.op_type != "Cast"] == ["Add"]
    found = reproduce(tmp_path / "fault")
    assert report.reproduction is not None
    assert found == report.reproduction.found is not None
    text = (tmp_path / "fault" / "report.md").read_text()
    assert guilty[0] in text
    assert "trtship debug --reproduce fault" in text
    assert not list(tmp_path.glob(".*partial"))


def test_the_text_about_a_plan_has_the_command_for_polygraphy_too(digits: Digits, tmp_path: Path) -> None:
    bundle, _ = spoilt(digits("fp16"), "heads swapped", tmp_path)
    report = debug_bundle(bundle, output=tmp_path / "fault")
    assert report.reproduction is not None
    assert report.wrong is not None
    assert report.wrong.located is not None
    made = msgspec.structs.replace(report.reproduction, subject="plan")
    text = bug_report(report.wrong.located, made, runtime="r", case="c", versions={}, folder="fault", nodes=())
    assert "polygraphy run fault/minimal.onnx --trt --strongly-typed --onnxrt" in text
    assert f"--data-loader-script fault/{LOADER}\n" in text


def test_in_a_suspect_that_is_fused_the_graph_says_which_node_overflows(digits: Digits) -> None:
    """As in a plan: to look at a tensor is to keep it, which takes apart the kernel that it was inside of."""

    class Fused(GraphRuns):
        changes = True

    judged = digits("fp16")
    model = judged.graph()
    guilty = BY_NAME["layer norm overflows"].plant(model)
    located = judged.locate_by(Fused(model, judged.precision))
    assert located is not None
    assert located.node in guilty


def test_where_the_fp32_graph_is_wrong_another_export_says_what_is_right(digits: Digits, tmp_path: Path) -> None:
    """It goes through the passes of the bundle, and has the same tensors then."""
    bundle, guilty = spoilt(digits("fp32"), "gelu tanh", tmp_path)
    alone = debug_bundle(bundle, output=tmp_path / "fault").wrong
    assert alone is not None
    assert alone.located is None
    assert "--reference" in alone.reason
    assert not (tmp_path / "fault").exists()
    again = export_digits(tmp_path / "again.onnx", opset=20)
    found = debug_bundle(bundle, reference=again).wrong
    assert found is not None
    assert found.located is not None
    assert (found.subject, found.located.node) == ("graph fp32", *guilty)


def test_what_stands_at_the_output_is_left_alone(digits: Digits, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists"):
        debug_bundle(digits("fp16").bundle, output=tmp_path)
    assert not any(tmp_path.iterdir())


def test_another_folder_is_no_reproduction(digits: Digits) -> None:
    with pytest.raises(BundleError, match="no reproduction"):
        reproduce(digits("fp16").bundle.folder)


@no_gpu
def test_a_reproduction_of_a_plan_needs_a_gpu(digits: Digits, tmp_path: Path) -> None:
    bundle, _ = spoilt(digits("fp16"), "softmax axis", tmp_path)
    debug_bundle(bundle, output=tmp_path / "fault")
    path = tmp_path / "fault" / "reproduction.json"
    record = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode({**record, "subject": "plan"}))
    with pytest.raises(DeviceError, match="GPU"):
        reproduce(tmp_path / "fault")
