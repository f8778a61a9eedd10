"""`trtship debug` as users run it."""

from __future__ import annotations

from pathlib import Path

import onnx
from cli_workplace import Workplace
from onnx import numpy_helper

from deployed import edit_graph, reseal


def spoil(model: onnx.ModelProto) -> None:
    """The classifier's weight is a tenth too large."""
    (tensor,) = (t for t in model.graph.initializer if list(t.dims) in ([3, 4], [4, 3]))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.1, tensor.name))


def test_a_right_bundle_exits_with_0_and_tells_every_subject_as_json(work: Workplace, deployed: Path) -> None:
    done = work.run("debug", deployed, "--json")
    assert done.code == 0, done.err
    assert set(done.json) == {"bundle", "against", "findings", "folder", "reproduction"}
    assert [f["subject"] for f in done.json["findings"]] == ["graph fp32", "plan"]
    assert {f["state"] for f in done.json["findings"]} <= {"right", "not run"}


def test_a_wrong_one_exits_with_1_names_the_node_and_reproduces_it(
    work: Workplace, bundle: Path, deployed: Path
) -> None:
    edit_graph(bundle / "model.onnx", spoil)
    reseal(bundle)
    arguments = ("--reference", deployed / "model.onnx", "-o", work / "fault")
    done = work.run("debug", bundle, *arguments)
    assert done.code == 1, done.err
    assert "Gemm" in done.out
    assert "is to blame" in done.out
    again = work.run("debug", "--reproduce", work / "fault", "--json")
    assert again.code == 1, again.err
    assert again.json["found"]["state"] == "off"
    assert work.left_over() == []
    assert "exists" in work.refuses("debug", bundle, *arguments)


def test_it_takes_a_bundle_or_a_reproduction(work: Workplace, deployed: Path) -> None:
    assert "BUNDLE" in work.refuses("debug")
    assert "BUNDLE" in work.refuses("debug", deployed, "--reproduce", deployed)
    assert "no reproduction" in work.refuses("debug", "--reproduce", deployed)
    assert "--width" in work.refuses("debug", deployed, "--width", "0")
