"""Plans built in processes of their own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from trtship.bench.build import Builders
from trtship.bench.peers.onnx_tensorrt import OnnxTensorRT
from trtship.bench.plan import PlanGraph
from trtship.bench.timing import RunnerFailed
from trtship.bundle import Bundle
from trtship.family import installed_families
from trtship.spec import Precision, ShapeRange

pytestmark = pytest.mark.skipif("tensorrt_rtx" not in installed_families(), reason="builds without a GPU need it")


@pytest.fixture
def graph(deployed: Callable[[str, str], Path]) -> PlanGraph:
    bundle = Bundle.open(deployed("colours", "fp32"))
    m = bundle.manifest
    return PlanGraph(
        name="plain",
        graph=str(bundle.path(m.precision_graph)),
        inputs=m.plan_inputs,
        outputs=m.plan_outputs,
        ranges={"B": ShapeRange(min=2, opt=2, max=2)},
        precision=m.precision,
        family="tensorrt_rtx",
    )


def test_several_plans_of_one_graph_are_numbered_and_a_single_one_is_not(graph: PlanGraph, tmp_path: Path) -> None:
    with closing(Builders("tensorrt_rtx")) as builders:
        two = builders.submit(graph, count=2, folder=tmp_path / "two")
        one = builders.submit(graph, count=1, folder=tmp_path / "one")
        plans = [future.result() for future in (*two, *one)]
    assert [plan.build for plan in plans] == [1, 2, 0]
    assert len({plan.path for plan in plans}) == 3
    assert all(Path(plan.path).stat().st_size > 1000 for plan in plans)
    assert [plan.tf32 for plan in plans] == [False] * 3


def test_a_build_that_fails_gives_its_reason(graph: PlanGraph, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    with closing(Builders("tensorrt_rtx")) as builders:
        (plan,) = builders.submit(msgspec.structs.replace(graph, graph=str(broken)), count=1, folder=tmp_path / "out")
        with pytest.raises(RunnerFailed, match=r"broken\.onnx"):
            plan.result()


def test_closing_ends_what_is_being_built(graph: PlanGraph, tmp_path: Path) -> None:
    builders = Builders("tensorrt_rtx")
    plans = builders.submit(graph, count=6, folder=tmp_path / "many")
    builders.close()
    assert all(plan.done() for plan in plans)


def test_the_plain_way_exports_in_half_precision_for_any_batch_and_its_plans_build(
    deployed: Callable[[str, str], Path], tmp_path: Path
) -> None:
    from trtship.bench.original import options_of, original_of

    bundle = Bundle.open(deployed("colours", "fp32"))
    m = bundle.manifest
    plain = OnnxTensorRT().export(
        original_of(bundle, options_of(bundle)).module,
        tmp_path / "plain.onnx",
        inputs=m.inputs,
        outputs=m.outputs,
        precision=Precision.FP16,
        feeds=bundle.reference().inputs,
        ranges={"B": ShapeRange(min=5, opt=5, max=5)},
    )
    assert {spec.dtype for spec in (*plain.inputs, *plain.outputs)} == {"float16"}
    with closing(Builders("tensorrt_rtx")) as builders:
        (plan,) = builders.submit(plain, count=1, folder=tmp_path / "out")
        assert Path(plan.result().path).stat().st_size > 1000
