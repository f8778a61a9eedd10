"""Graphs, numbers, paths and limits that would hang, crash or fill memory: exit code 2 or 3, and one message."""

from __future__ import annotations

import resource
from collections.abc import Callable

import pytest
from cli_workplace import QUICK, Workplace

from graphs_hostile import HOSTILE, node, with_nodes

GRAPH_VERBS = {
    "deploy": ("--precision", "fp32"),
    "export": (),
    "simplify": (),
    "optimize": (),
    "build": ("--precision", "fp32"),
}


@pytest.mark.parametrize("verb", GRAPH_VERBS)
def test_a_graph_with_a_cycle_is_refused_by_every_verb(
    work: Workplace, refuses_here: Callable[..., str], verb: str
) -> None:
    (work / "a.onnx").write_bytes(HOSTILE["a cycle of two"]().SerializeToString())
    message = refuses_here(verb, "a.onnx", *GRAPH_VERBS[verb], "-o", "b.out")
    assert "cycle" in message


@pytest.mark.parametrize("fault", ["an offset with a NUL", "too little data"])
def test_a_tensor_that_lies_about_its_data_is_named(
    work: Workplace, refuses_here: Callable[..., str], fault: str
) -> None:
    (work / "data.bin").write_bytes(bytes(16))
    (work / "a.onnx").write_bytes(HOSTILE[fault]().SerializeToString())
    assert "the tensor w" in refuses_here("deploy", "a.onnx", "--precision", "fp32", "-o", "b.out")
    assert "the tensor w" in refuses_here("optimize", "a.onnx", "-o", "b.out")


@pytest.mark.parametrize("verb", ["deploy", "build"])
def test_a_graph_without_inputs_is_refused(work: Workplace, refuses_here: Callable[..., str], verb: str) -> None:
    model = with_nodes(node("Relu", "w", "y"))
    model.graph.ClearField("input")
    model.graph.output[0].type.tensor_type.shape.ClearField("dim")
    model.graph.output[0].type.tensor_type.shape.dim.add(dim_value=4)
    (work / "a.onnx").write_bytes(model.SerializeToString())
    assert "no inputs" in refuses_here(verb, "a.onnx", "--precision", "fp32", "-o", "b.out")


HUGE = "9" * 21


@pytest.mark.parametrize(
    "command",
    [
        ("optimize", "a.onnx", "-o", "b", "--traced", HUGE),
        ("optimize", "a.onnx", "-o", "b", "--traced", "9" * 5000),
        ("run", "b", "x.png", "--device", HUGE),
        ("run", "b", "x.png", "--top", HUGE),
        ("verify", "b", "--device", f"-{HUGE}"),
        ("unpack", "a.zip", "--max-mib", HUGE),
        ("export", "model.py:small", "-o", "b", "--opset", HUGE),
        ("deploy", "model.py:small", *QUICK, "-o", "b", "--seed", HUGE),
        ("deploy", "model.py:small", *QUICK, "-o", "b", "--input", f"input=Bx1x8x{HUGE}"),
        ("deploy", "model.py:small", "-o", "b", "--batch", f"1:2:{HUGE}"),
        ("unpack", ""),
        ("unpack", "/"),
        ("unpack", "."),
        ("unpack", "/.zip"),
        ("export", "model.py:small", "-o", "b\udcff"),
        ("deploy", "model.py:small", *QUICK, "-o", "b\udcff"),
        ("unpack", "a.zip", "-o", ""),
        ("unpack", "a.zip", "-o", " "),
        ("deploy", "model.py:small", *QUICK, "-o", ""),
        ("deploy", "model.py:small", *QUICK, "-o", "b", "--checkpoint", ""),
        ("deploy", "model.py:small", *QUICK, "-o", "b", "--keep-failed", ""),
        ("deploy", "", "-o", "b"),
        ("inspect", ""),
        ("run", "b", ""),
        ("pack", "", "-o", "b.zip"),
        ("sign", "b", "--key", ""),
        ("export-triton", "", "b"),
        ("report", ""),
        ("debug", ""),
    ],
    ids=lambda command: " ".join(text[:12] or "''" for text in command),
)
def test_numbers_and_paths_that_are_none_are_refused(
    refuses_here: Callable[..., str], command: tuple[str, ...]
) -> None:
    refuses_here(*command)


@pytest.mark.parametrize("place", ["/", "."])
def test_a_folder_that_holds_the_work_is_not_replaced(work: Workplace, bundle: object, place: str) -> None:
    work.refuses("deploy", "model.py:small", *QUICK, "-o", place, "--force")


def limited(kind: int, amount: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (amount, amount))


@pytest.mark.parametrize("verb", [("inspect", "small.trtship"), ("deploy", "model.py:small", "-o", "b")])
def test_too_few_open_files_is_told(work: Workplace, verb: tuple[str, ...]) -> None:
    for files in (12, 40):
        message = work.refuses(*verb, code=3, preexec_fn=limited(resource.RLIMIT_NOFILE, files))
        assert "ulimit -n" in message


@pytest.mark.parametrize("mib", [100, 700])
def test_too_little_memory_is_told(work: Workplace, mib: int) -> None:
    limit = limited(resource.RLIMIT_AS, mib * 2**20)
    message = work.refuses("deploy", "model.py:small", *QUICK, "-o", "b", "--quiet", code=3, preexec_fn=limit)
    assert "memory" in message


def test_help_needs_little(work: Workplace) -> None:
    done = work.run("deploy", "--help", preexec_fn=limited(resource.RLIMIT_AS, 100 * 2**20))
    assert done.code == 0
    assert "usage" in done.out
