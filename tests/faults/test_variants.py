"""What is right passes, however it is written: the suite would be worth little if everything failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from judging import Judged, failed, opener
from models import MODELS, PASSES, Model, export_by_torchscript, export_digits, verdicts_on, verdicts_with
from variants import VARIANTS, Variant

from graphs import SMALL

Digits = Callable[[str], Judged]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda one: one.name)
def test_a_graph_that_is_written_otherwise_passes(digits: Digits, variant: Variant) -> None:
    judged = digits("fp16")
    model = judged.graph()
    variant.write(model)
    verdicts = judged.verdicts(opener(model))
    assert failed(verdicts) == set()
    assert "passed" in {verdict.state for verdict in verdicts}


@pytest.mark.parametrize("model", MODELS, ids=lambda one: f"{one.name} {one.precision.value} {one.batch}")
def test_another_model_passes(exported: Callable[[str], Path], model: Model, tmp_path: Path) -> None:
    by_dynamo = model.name in SMALL
    graph = exported(model.name) if by_dynamo else export_by_torchscript(model, tmp_path / "model.onnx")
    assert failed(verdicts_on(model, graph, tmp_path)) == set()


@pytest.fixture(scope="module")
def at_opset_17(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_digits(tmp_path_factory.mktemp("digits") / "model.onnx")


@pytest.mark.parametrize("passes", PASSES.values(), ids=PASSES)
def test_other_passes_and_another_opset_pass(
    digits: Digits, at_opset_17: Path, passes: Sequence[str], tmp_path: Path
) -> None:
    assert failed(verdicts_with(digits("fp16"), at_opset_17, passes, tmp_path)) == set()


def test_there_are_at_least_twenty() -> None:
    assert len(VARIANTS) + len(MODELS) + len(PASSES) >= 20
