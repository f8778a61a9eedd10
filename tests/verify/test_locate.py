"""The search for the first wrong tensor, on graphs written by hand and drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs import model_of
from trtship.spec import Precision
from trtship.verify.locate import Search
from trtship.verify.locate_graph import typed
from trtship.verify.locate_reproduction import read_reproduction, run_reproduction, write_reproduction
from trtship.verify.locate_runs import GraphRuns, Kept, Suspect, with_outputs

W = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4) + np.eye(4, dtype=np.float32)
X = {"x": np.linspace(-2, 3, 12, dtype=np.float32).reshape(3, 4)}
BODY = """(float[B, 4] x) => (float[B, 4] y) {
  a = MatMul(x, w)
  b = Relu(a)
  c = LayerNormalization<axis=-1, epsilon=1e-12>(b, g)
  d = MatMul(c, w)
  e = Add(b, d)
  y = MatMul(e, w)
}"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., ir.Model]:
    def of(body: str = BODY, **constants: Any) -> ir.Model:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.onnx"
        given_ = {"w": W, "g": np.ones(4, np.float32), **constants}
        used = {name: array for name, array in given_.items() if f", {name}" in body or f"({name}" in body}
        onnx.save(model_of(body, **used), path)
        return typed(path)

    return of


class Watched(GraphRuns):
    """Counts what each run keeps."""

    def __init__(self, model: ir.Model, precision: Precision = Precision.FP32) -> None:
        super().__init__(model, precision)
        self.kept: list[tuple[str, ...]] = []

    def keep(self, names: Sequence[str], feeds: Mapping[str, Any]) -> Kept:
        self.kept.append(tuple(names))
        return super().keep(names, feeds)


@pytest.mark.parametrize(
    ("wrong", "tensor"),
    [
        (BODY.replace("b = Relu(a)", "b = Abs(a)"), "b"),
        (BODY.replace("d = MatMul(c, w)", "d = MatMul(c, v)"), "d"),
        (BODY.replace("e = Add(b, d)", "e = Sub(b, d)"), "e"),
        (BODY.replace("epsilon=1e-12", "epsilon=0.1"), "c"),
        (BODY.replace("y = MatMul(e, w)", "y = MatMul(e, v)"), "y"),
    ],
)
def test_the_first_wrong_tensor_is_named(load: Callable[..., ir.Model], wrong: str, tensor: str) -> None:
    found = Search(GraphRuns(load(wrong, v=W.T.copy()), Precision.FP32), load(), X).locate()
    assert found is not None
    assert (found.tensor, found.deviation.state) == (tensor, "off")
    assert found.deviation.error > 10 * found.deviation.floor
    assert len(found.nodes) == 1


def test_nothing_is_named_where_nothing_is_wrong(load: Callable[..., ir.Model]) -> None:
    assert Search(GraphRuns(load(), Precision.FP32), load(), X).locate() is None


def test_an_error_that_a_norm_hides_is_followed_on_the_other_way(load: Callable[..., ir.Model]) -> None:
    """b is three times too large; c, normalised, is right all the same, and e is not."""
    wrong = BODY.replace("b = Relu(a)", "r = Relu(a)\n  b = Mul(r, three)")
    found = Search(GraphRuns(load(wrong, three=np.float32(3)), Precision.FP32), load(), X, width=1).locate()
    assert found is not None
    assert (found.tensor, found.operator) == ("b", "Mul")
    assert {one.tensor: one.state for one in found.looked_at}.get("c", "same") == "same"


def test_a_node_that_does_not_run_is_named(load: Callable[..., ir.Model]) -> None:
    wrong = BODY.replace("b = Relu(a)", "r = Reshape(a, shape)\n  b = Relu(r)")
    model = load(wrong, shape=np.array([2, 4]))
    found = Search(GraphRuns(model, Precision.FP32), load(), X).locate()
    assert found is not None
    assert (found.operator, found.deviation.state) == ("Reshape", "does not run")


def test_the_node_that_makes_infinities_is_named_and_not_the_one_after_it(load: Callable[..., ir.Model]) -> None:
    """Between a and b the reference has nothing to compare."""
    wrong = BODY.replace("b = Relu(a)", "p = Mul(a, big)\n  q = Mul(p, big)\n  r = Div(q, big)\n  b = Relu(r)")
    found = Search(GraphRuns(load(wrong, big=np.float32(1e30)), Precision.FP32), load(), X).locate()
    assert found is not None
    assert found.tensor == "b"
    assert found.node == next(
        n.name or "q" for n in load(wrong, big=np.float32(1e30)).graph if n.outputs[0].name == "q"
    )


def test_what_the_reference_overflows_on_says_nothing(load: Callable[..., ir.Model]) -> None:
    feeds = {"x": X["x"] * np.float32(1e38)}
    assert Search(GraphRuns(load(), Precision.FP32), load(), feeds).locate() is None


class Heals(Watched):
    """Stands for a plan whose fusion around one tensor is wrong: keeping that tensor takes the fusion apart."""

    changes = True

    def __init__(self, model: ir.Model, right: ir.Model, tensor: str) -> None:
        super().__init__(model)
        self._right, self._tensor = GraphRuns(right, Precision.FP32), tensor

    def keep(self, names: Sequence[str], feeds: Mapping[str, Any]) -> Kept:
        runs = self._right if self._tensor in names else super()
        self.kept.append(tuple(names))
        own = [name for name in names if name != "y"]
        return Kept(runs.keep(names, feeds).values, runs.keep(["y", *own][:1], feeds).values)


def test_a_tensor_that_heals_the_plan_when_it_is_kept_is_told_and_does_not_mislead(
    load: Callable[..., ir.Model],
) -> None:
    suspect = Heals(load(BODY.replace("d = MatMul(c, w)", "d = MatMul(c, v)"), v=W.T.copy()), load(), "c")
    found = Search(suspect, load(), X).locate()
    assert found is not None
    assert found.tensor == "d"
    assert {one.tensor: one.state for one in found.looked_at}["c"] == "heals"


@st.composite
def networks(draw: st.DrawFn) -> tuple[str, int]:
    """A random graph of up to 14 nodes, each reading earlier tensors, and the index of one of them."""
    count = draw(st.integers(2, 14))
    lines, names = [], ["x"]
    for index in range(count):
        one, other = (draw(st.sampled_from(names)) for _ in range(2))
        form = draw(st.sampled_from(["MatMul({0}, w)", "Add({0}, {1})", "Tanh({0})", "Mul({0}, half)"]))
        lines.append(f"t{index} = {form.format(one, other)}")
        names.append(f"t{index}")
    unused = [
        n for n in names[1:] if not any(f"({n}," in line or f" {n})" in line or f"({n})" in line for line in lines)
    ]
    total = unused[0]
    for index, name in enumerate(unused[1:]):
        lines.append(f"s{index} = Add({total}, {name})")
        total = f"s{index}"
    body = "\n  ".join([*lines, f"y = Identity({total})"])
    return f"(float[B, 4] x) => (float[B, 4] y) {{\n  {body}\n}}", draw(st.integers(0, count - 1))


@settings(max_examples=25, deadline=None)
@given(networks(), st.integers(1, 5), st.integers(1, 3))
def test_the_planted_fault_is_found_whatever_the_graph_and_the_bounds(
    drawn: tuple[str, int], width: int, rows: int
) -> None:
    """A tenth is added to one tensor. Every run keeps at most `width` tensors, and at most three of them in memory."""
    body, place = drawn
    wrong = body.replace(f"t{place} = ", f"fault{place} = ", 1)
    end = wrong.index("\n", wrong.index(f"fault{place} = "))
    wrong = f"{wrong[:end]}\n  t{place} = Add(fault{place}, tenth){wrong[end:]}"
    constants = {"w": W / 4, "half": np.float32(0.5), "tenth": np.float32(0.1)}

    def of(text: str) -> ir.Model:
        used = {name: a for name, a in constants.items() if f", {name})" in text}
        return ir.passes.common.ShapeInferencePass()(ir.from_proto(model_of(text, **used))).model

    feeds = {"x": np.random.default_rng(0).standard_normal((rows, 4)).astype(np.float32)}
    suspect = Watched(of(wrong))
    found = Search(suspect, of(body), feeds, width=width, memory=3 * 16 * rows).locate()
    assert found is not None
    assert found.tensor == f"t{place}"
    assert max(map(len, suspect.kept)) <= max(min(width, 3), 1)
    assert found.runs <= len(suspect.kept)


def test_a_reproduction_shows_the_fault_alone_and_again_when_it_is_read(
    load: Callable[..., ir.Model], tmp_path: Path
) -> None:
    wrong = load(BODY.replace("d = MatMul(c, w)", "d = MatMul(c, v)"), v=W.T.copy())
    search = Search(GraphRuns(wrong, Precision.FP32), load(), X)
    located = search.locate()
    assert located is not None
    folder = tmp_path / "fault"
    folder.mkdir()

    def opens(model: ir.Model) -> Suspect:
        return GraphRuns(model, Precision.FP32)

    made = write_reproduction(folder, search, located, opens, subject="graph fp32", family="tensorrt_rtx")
    assert (made.reads, made.tensor) == (("c",), "d")
    assert [n.op_type for n in onnx.load(folder / "minimal.onnx").graph.node] == ["MatMul"]
    record, suspect, reference, feeds = read_reproduction(folder)
    assert record == made
    assert run_reproduction(opens(suspect), reference, feeds) == made.found is not None
    assert run_reproduction(opens(reference), reference, feeds) is None


def test_a_tensor_in_bfloat16_is_kept_by_way_of_a_cast() -> None:
    text = "(bfloat16[B, 4] x) => (bfloat16[B, 4] y) { a = Relu(x) y = Neg(a) }"
    model = ir.passes.common.ShapeInferencePass()(ir.from_proto(model_of(text, opset=22))).model
    outputs = with_outputs(model, ["a"]).graph.outputs
    assert [(value.name, value.dtype.name) for value in outputs if value.dtype] == [
        ("y", "BFLOAT16"),
        ("a/kept", "FLOAT"),
    ]
    assert [value.name for value in model.graph.outputs] == ["y"]
