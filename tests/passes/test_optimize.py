from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir
import pytest
from swins import export, make

from graphs import ops, written
from trtship.cli import optimize as verb
from trtship.cli.console import Console
from trtship.errors import GraphError, OutputError, SpecError
from trtship.graphs import graph_files, load_graph
from trtship.passes import simplify
from trtship.passes.batches import Batches
from trtship.passes.optimization import optimize
from trtship.passes.patch_embedding import PatchEmbedding
from trtship.passes.proof import Reference, Verdict
from trtship.passes.rewrite import Editor, Miss, Rewrite
from trtship.passes.windows_into_heads import WindowsIntoHeads
from trtship.progress import Progress

ADD = "(float[B, 4] x) => (float[B, 4] y) { a = Add(x, w) y = Relu(a) }"
W = np.array([1, -2, 3, 0.5], np.float32)


FAULTS: dict[str, Exception] = {
    "Bug": KeyError("a mistake of ours"),
    "Assertion": AssertionError(),  # without a word
    "Memory": MemoryError(),
    "Full": OutputError("cannot write the draft", why="No space left on device"),
}


class Replace(Rewrite[onnx_ir.Node]):
    """Every Add becomes another operator."""

    name: ClassVar[str] = "replace"

    def __init__(self, op: str) -> None:
        self.op = op

    def pattern(self, graph: onnx_ir.Graph) -> Iterable[onnx_ir.Node]:
        return (node for node in graph if node.op_type == "Add")

    def check(self, anchor: onnx_ir.Node, batches: Batches) -> onnx_ir.Node:
        if self.op == "Miss":
            raise Miss(anchor, "not today")
        return anchor

    def rewrite(self, found: onnx_ir.Node, editor: Editor) -> None:
        if self.op in FAULTS:
            raise FAULTS[self.op]
        inputs = [value for value in found.inputs if value is not None]
        editor.replace(found.outputs[0], editor.node(self.op, inputs, before=found))


class Heard(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_pass_that_holds_its_promise_is_kept(tmp_path: Path) -> None:
    report = optimize(written(tmp_path / "a.onnx", ADD, w=W), tmp_path / "b.onnx", passes=[Replace("Sum")])
    _, one = report.passes
    assert (one.matches, one.rewritten, one.kept, one.error) == (1, 1, True, 0)
    assert ops(tmp_path / "b.onnx") == ["Sum", "Relu"]


FAILURES = {
    "Sub": "relative L2 at most",
    "Bug": "it failed: KeyError: 'a mistake of ours'",
    "Assertion": "it failed: AssertionError",
    "Memory": "it failed: MemoryError",
    "Frobnicate": "it failed: GraphError",
}


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "together"])
@pytest.mark.parametrize(("op", "why"), FAILURES.items())
def test_a_pass_that_fails_is_rolled_back_and_the_others_go_on(
    op: str, why: str, together: bool, tmp_path: Path
) -> None:
    source = written(tmp_path / "a.onnx", ADD, w=W)
    report = optimize(source, tmp_path / "b.onnx", passes=[Replace(op), Replace("Sum")], together=together)
    assert [one.kept for one in report.passes] == [False, False, True]
    assert [one.rolled_back for one in report.passes] == [False, True, False]
    assert why in report.passes[1].why
    assert report.summary == "1 replace, replace rolled back"
    assert (report.passes[1].nodes_after, report.nodes_after) == (2, 2)
    assert ops(tmp_path / "b.onnx") == ["Sum", "Relu"]


class Counting(Replace):
    """Counts the proofs."""

    proofs: ClassVar[int] = 0

    def prove(self, reference: Reference, graph: Path) -> Verdict:
        Counting.proofs += 1
        return super().prove(reference, graph)


def test_passes_are_proved_at_once_where_all_is_well(swin: Callable[..., Path], tmp_path: Path) -> None:
    chosen = [WindowsIntoHeads(), Replace("Miss"), PatchEmbedding()]
    each = optimize(swin("own"), tmp_path / "a.onnx", passes=chosen)
    report = optimize(swin("own"), tmp_path / "b.onnx", passes=chosen, together=True)
    assert ops(tmp_path / "b.onnx") == ops(tmp_path / "a.onnx")
    assert [(one.rewritten, one.nodes_before, one.nodes_after, one.kept) for one in report.passes] == [
        (one.rewritten, one.nodes_before, one.nodes_after, one.kept) for one in each.passes
    ]
    _, windows, missed, patches = report.passes
    assert (windows.error, windows.bound) == (patches.error, patches.bound)
    assert (patches.error, patches.bound) == (each.passes[-1].error, each.passes[-1].bound)
    assert "all passes together" in windows.why
    assert (missed.why, missed.error) == ("near misses only", None)


def test_a_pass_with_a_proof_of_its_own_is_proved_by_it(tmp_path: Path) -> None:
    Counting.proofs = 0
    source = written(tmp_path / "a.onnx", ADD, w=W)
    report = optimize(source, tmp_path / "b.onnx", passes=[Counting("Sum")], together=True)
    assert (report.passes[1].kept, Counting.proofs) == (True, 1)


def test_a_source_that_does_not_run_raises_from_any_proof(tmp_path: Path) -> None:
    body = "(float[B, 4] x) => (float[B, 4] y) { s = Constant<value_ints = [7, 4]>() r = Reshape(x, s) y = Add(r, r) }"
    source = written(tmp_path / "a.onnx", body)
    for together in (False, True):
        with pytest.raises(GraphError):
            optimize(source, tmp_path / "b.onnx", passes=[Replace("Sum")], thaws=False, together=together)
    assert not (tmp_path / "b.onnx").exists()


def test_what_is_rolled_back_is_said_while_it_runs(tmp_path: Path) -> None:
    progress = Heard()
    source = written(tmp_path / "a.onnx", ADD, w=W)
    optimize(source, tmp_path / "b.onnx", passes=[Replace("Bug"), Replace("Miss")], progress=progress)
    assert progress.notes == ["replace was rolled back: it failed: KeyError: 'a mistake of ours'"]
    assert ops(tmp_path / "b.onnx") == ["Add", "Relu"]


def test_a_full_disk_is_not_the_passs_fault(tmp_path: Path) -> None:
    source = written(tmp_path / "a.onnx", ADD, w=W)
    with pytest.raises(OutputError, match="cannot write the draft"):
        optimize(source, tmp_path / "b.onnx", passes=[Replace("Full")])
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_a_proof_that_crashes_is_a_pass_that_fails(tmp_path: Path) -> None:
    class Unprovable(Replace):
        def prove(self, reference: Reference, graph: Path) -> Verdict:
            raise ZeroDivisionError

    report = optimize(written(tmp_path / "a.onnx", ADD, w=W), tmp_path / "b.onnx", passes=[Unprovable("Sum")])
    assert (report.passes[1].rolled_back, report.passes[1].why) == (True, "it failed: ZeroDivisionError")
    assert ops(tmp_path / "b.onnx") == ["Add", "Relu"]


def test_a_proof_runs_at_the_sizes_that_the_model_takes(tmp_path: Path) -> None:
    """L is a multiple of 8, in which the default sizes are not."""
    body = """(float[B, L] x) => (float[C, 8] y) {
        s = Constant<value_ints = [-1, 8]>() r = Reshape(x, s) y = Add(r, r)
    }"""
    source = written(tmp_path / "a.onnx", body)
    sizes = [{"B": 2, "L": 8}, {"B": 1, "L": 8}, {"B": 3, "L": 8}, {"B": 2, "L": 24}]
    report = optimize(source, tmp_path / "b.onnx", passes=[Replace("Sum")], thaws=False, sizes=sizes)
    assert [(one.name, one.kept) for one in report.passes] == [("replace", True)]
    with pytest.raises(GraphError):
        optimize(source, tmp_path / "c.onnx", passes=[Replace("Sum")], thaws=False)


FORMS = {
    "several inputs": "(float[B, 4] x, int64[B, 3] i, float[4] v) => (float[B, 4] y, int64[B, 3] j) "
    "{ a = Add(x, v) y = Relu(a) j = Identity(i) }",
    "a fixed batch": "(float[5, 4] x) => (float[5, 4] y) { a = Add(x, w) y = Relu(a) }",
    "no batch at all": "(float[4] x) => (float[4] y) { a = Add(x, w) y = Relu(a) }",
}


@pytest.mark.parametrize("body", FORMS.values(), ids=list(FORMS))
def test_graphs_of_other_forms(body: str, tmp_path: Path) -> None:
    constants = {"w": W} if "w)" in body else {}
    report = optimize(written(tmp_path / "a.onnx", body, **constants), tmp_path / "b.onnx", passes=[Replace("Sum")])
    assert report.passes[-1].kept
    assert report.passes[-1].error == 0


def test_weights_over_the_limit_stay_beside_the_graph(swin: Callable[..., Path], tmp_path: Path) -> None:
    chosen = [WindowsIntoHeads(), Replace("Bug"), PatchEmbedding(), Replace("Sum")]
    report = optimize(swin("own"), tmp_path / "b.onnx", passes=chosen, external_over=1000)
    assert [one.kept for one in report.passes[1:]] == [True, False, True, True]
    assert [path.name for path in graph_files(tmp_path / "b.onnx")] == ["b.onnx", "b.onnx.data"]
    again = optimize(tmp_path / "b.onnx", tmp_path / "c.onnx", passes=[], thaws=False)
    assert (again.passes, again.summary) == ((), "nothing to rewrite")
    assert {path.name for path in tmp_path.iterdir()} == {"b.onnx", "b.onnx.data", "c.onnx"}
    assert Reference(swin("own")).verdict(tmp_path / "c.onnx").same


def test_an_opset_of_old(tmp_path: Path) -> None:
    """12: Softmax flattens, and Squeeze, ReduceSum and the like have their axes as attributes."""
    source = export(*make("own"), tmp_path / "a.onnx", opset=12)
    simplify(source, tmp_path / "simple.onnx", sizes=[{"B": 2}])
    report = optimize(tmp_path / "simple.onnx", tmp_path / "b.onnx")
    assert [one.name for one in report.passes if one.rolled_back] == []
    assert {one.name: one.rewritten for one in report.passes}["windows into heads"] == 4
    assert load_graph(tmp_path / "b.onnx").opset_imports[""] == 12


def test_a_graph_may_be_optimized_in_place(swin: Callable[..., Path], tmp_path: Path) -> None:
    copy = Path(shutil.copy(swin("own"), tmp_path / "a.onnx"))
    assert optimize(copy, copy).summary.startswith("4 windows into heads")
    assert Reference(swin("own")).verdict(copy).same


def test_near_misses_reach_the_report(tmp_path: Path) -> None:
    report = optimize(written(tmp_path / "a.onnx", ADD, w=W), tmp_path / "b.onnx", passes=[Replace("Miss")])
    _, one = report.passes
    assert (one.matches, one.rewritten, one.kept, one.error) == (1, 0, False, None)
    assert [(miss.node, miss.reason) for miss in one.near_misses] == [("a (Add)", "not today")]


def test_a_source_that_does_not_run_raises(tmp_path: Path) -> None:
    body = "(float[B, 4] x) => (float[B, 4] y) { s = Constant<value_ints = [7, 4]>() y = Reshape(x, s) }"
    with pytest.raises(GraphError):
        optimize(written(tmp_path / "a.onnx", body), tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize("name", ["convnext"])
def test_a_network_without_windows_comes_out_the_same(
    name: str, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    report = optimize(exported(name), tmp_path / "b.onnx", passes=[WindowsIntoHeads()])
    assert [one.why for one in report.passes] == ["nothing matched"] * 2
    assert report.summary == "nothing to rewrite"
    assert ops(tmp_path / "b.onnx") == ops(exported(name))


# The proof: each graph differs from the first one on one kind of input alone.
SAME = "(float[B, 4, 4] x) => (float[B, 4, 4] y) { y = Identity(x) }"
SPOILED = {
    "large activations": "(float[B, 4, 4] x) => (float[B, 4, 4] y) { y = Clip(x, low, high) }",
    "constant rows": """(float[B, 4, 4] x) => (float[B, 4, 4] y) {
        r = ReduceMax<keepdims = 1>(x, last) s = ReduceMin<keepdims = 1>(x, last) d = Sub(r, s) t = Less(d, tiny)
        z = Sub(x, x) y = Where(t, z, x) }""",
    "one hot pixel": """(float[B, 4, 4] x) => (float[B, 4, 4] y) {
        e = Equal(x, zero) f = Cast<to = 1>(e) n = ReduceSum<keepdims = 1>(f, inner) t = Greater(n, ten)
        z = Sub(x, x) y = Where(t, z, x) }""",
    "a batch of three": """(float[B, 4, 4] x) => (float[B, 4, 4] y) {
        n = Shape<start = 0, end = 1>(x) t = Equal(n, three) z = Sub(x, x) y = Where(t, z, x) }""",
    "NaN": "(float[B, 4, 4] x) => (float[B, 4, 4] y) { z = Sub(x, x) q = Div(z, z) y = Add(x, q) }",
}


@pytest.mark.parametrize("body", SPOILED.values(), ids=list(SPOILED))
def test_the_proof_sees_what_one_kind_of_input_shows(body: str, tmp_path: Path) -> None:
    constants = {"low": np.float32(-8), "high": np.float32(8), "tiny": np.float32(1e-9), "zero": np.float32(0)}
    integers = {"last": np.array([-1]), "inner": np.array([1, 2]), "three": np.array([3])}
    reference = Reference(written(tmp_path / "a.onnx", SAME))
    assert reference.verdict(tmp_path / "a.onnx").error == 0
    spoiled = written(tmp_path / "b.onnx", body, **constants, **integers, ten=np.float32(10))
    assert not reference.verdict(spoiled).same


def test_inputs_on_which_the_graph_itself_overflows_prove_nothing(tmp_path: Path) -> None:
    body = "(float[B, 4, 4] x) => (float[B, 4, 4] y) { e = Exp(x) f = Exp(e) y = OP(f) }"
    source = written(tmp_path / "a.onnx", body.replace("OP", "Identity"))
    assert Reference(source).verdict(written(tmp_path / "b.onnx", body.replace("OP", "Sum"))).same


def run_verb(arguments: list[str], *, as_json: bool = False) -> int:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    console = Console(json=as_json, quiet=True)
    return verb.run(parser.parse_args(arguments), console)


def test_the_verb_prints_a_table(swin: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb([str(swin("own")), "-o", str(tmp_path / "b.onnx")]) == 0
    shown = capsys.readouterr().out
    for text in ("pass", "matches", "largest error", "windows into heads", "patch embedding", "b.onnx: "):
        assert text in shown


def test_the_verb_runs_the_passes_that_were_named(
    swin: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for names, wanted in (("patch-embedding", ["frozen batch", "patch embedding"]), ("none", ["frozen batch"])):
        assert run_verb([str(swin("own")), "-o", str(tmp_path / f"{names}.onnx"), "--passes", names], as_json=True) == 0
        report = json.loads(capsys.readouterr().out)["report"]
        assert [one["name"] for one in report["passes"]] == wanted
    with pytest.raises(SpecError, match="no pass 'patches'"):
        run_verb([str(swin("own")), "-o", str(tmp_path / "d.onnx"), "--passes", "patches"])


def test_the_verbs_json_is_the_report(
    swin: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verb([str(swin("own")), "-o", str(tmp_path / "b.onnx")], as_json=True) == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert {one["name"]: one["rewritten"] for one in report["passes"]}["windows into heads"] == 4
    assert all(set(one) >= {"matches", "near_misses", "error", "bound", "kept", "why"} for one in report["passes"])
