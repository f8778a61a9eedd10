"""`deploy --precision int8` and `fp8`, end to end but for running the plan."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import onnx
import pytest

import trtship
from deployed import COLOURS, RED, paint
from digits import HERE
from trtship.bundle import Bundle
from trtship.calibrate import Calibration
from trtship.errors import GraphError, ImageError, SpecError
from trtship.passes.quantize import QuantizeReport
from trtship.progress import Progress

SOURCE, CHECKPOINT, PICTURES = f"{HERE / 'model.py'}:digits_swin", HERE / "digits.safetensors", HERE / "pictures"


class Notes(Progress):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_the_digits_are_deployed_in_8_bits_and_checked_on_real_pictures(precision: str, tmp_path: Path) -> None:
    notes = Notes()
    target = tmp_path / "digits.trtship"
    result = trtship.deploy(
        SOURCE,
        target,
        checkpoint=CHECKPOINT,
        precision=precision,
        batch="8",
        exporter="torchscript",
        eval_dir=PICTURES,
        progress=notes,
    )
    assert any("calibrating on the pictures of --eval" in text for text in notes.texts)
    bundle = Bundle.open(target)
    calibration = msgspec.json.decode(bundle.read("evidence/calibrate.json"), type=Calibration)
    report = msgspec.json.decode(bundle.read("evidence/quantize.json"), type=QuantizeReport)
    assert (calibration.method, calibration.pictures) == ("percentile", 60)
    assert len(calibration.tensors) == 17
    assert len(report.products) == (17 if precision == "int8" else 21)
    verdicts = {(v.subject, v.gate): v for v in result.verdicts}
    for gate in ("rel_l2", "top1_drop"):
        assert verdicts[f"graph {precision}", gate].state == "passed"
    graph = onnx.load(bundle.path(bundle.manifest.precision_graph))
    assert sum(node.op_type == "QuantizeLinear" for node in graph.graph.node) == len(report.tensors)
    assert not any(
        node.op_type == "QuantizeLinear" for node in onnx.load(bundle.path(bundle.manifest.graph)).graph.node
    )
    json.dumps(bundle.manifest.recipe["calib"])


def test_without_pictures_it_says_so_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="needs inputs to calibrate on"):
        trtship.deploy(SOURCE, tmp_path / "x.trtship", checkpoint=CHECKPOINT, precision="int8")
    with pytest.raises(ImageError, match="holds no picture"):
        trtship.deploy(SOURCE, tmp_path / "x.trtship", checkpoint=CHECKPOINT, precision="fp8", calib_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_fp8_is_refused_for_gpus_that_lack_it(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"--target 8\.0 has no fp8"):
        trtship.deploy(
            SOURCE,
            tmp_path / "x.trtship",
            checkpoint=CHECKPOINT,
            precision="fp8",
            calib_dir=PICTURES,
            targets=["8.9", "8.0"],
        )


def test_a_model_with_nothing_to_quantize_is_not_called_int8(tmp_path: Path) -> None:
    (tmp_path / "colours.py").write_text(COLOURS)
    pictures = paint(tmp_path / "pictures", {"red": [RED]})
    with pytest.raises(GraphError, match="nothing in the graph to quantize"):
        trtship.deploy(
            f"{tmp_path / 'colours.py'}:colours",
            tmp_path / "x.trtship",
            precision="int8",
            exporter="torchscript",
            calib_dir=pictures,
        )
    assert not (tmp_path / "x.trtship").exists()
