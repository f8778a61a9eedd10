"""ONNX files as an attacker, a broken exporter or a damaged disk makes them; each is to be refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def sound() -> onnx.ModelProto:
    """y = x + w, w an initializer of [4]; every fault below is put into this one."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 4]) for name in "xy"]
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"], "add")], "g", values[:1], values[1:], [weight]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def external(**entries: str) -> onnx.ModelProto:
    """`w` in `data.bin`, 16 bytes of it, unless `entries` say otherwise."""
    model = sound()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "data.bin", "offset": "0", "length": "16", **entries}.items():
        weight.external_data.add(key=key, value=value)
    return model


def with_nodes(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    model = sound()
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def node(op: str, ins: str, outs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, ins.split(), outs.split(), f"{op}_{outs}", **attributes)


def branch(*nodes: onnx.NodeProto, output: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, "branch", [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


def within(branch_of: onnx.GraphProto) -> onnx.ModelProto:
    """An If, both of whose branches are the graph."""
    flag = helper.make_node("Constant", [], ["flag"], value=numpy_helper.from_array(np.array(True)))
    return with_nodes(flag, node("If", "flag", "y", then_branch=branch_of, else_branch=branch_of))


def changed(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    model = sound()
    change(model)
    return model


def initializer(**fields: object) -> onnx.ModelProto:
    model = sound()
    for name, value in fields.items():
        if isinstance(value, list):
            model.graph.initializer[0].ClearField(name)
            getattr(model.graph.initializer[0], name).extend(value)
        else:
            setattr(model.graph.initializer[0], name, value)
    return model


def recursive_functions() -> onnx.ModelProto:
    model = sound()
    opset = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    for name, other in (("F", "G"), ("G", "F")):
        call = helper.make_node(other, ["a"], ["b"], domain="own")
        model.functions.append(helper.make_function("own", name, ["a"], ["b"], [call], opset))
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("F", ["x"], ["y"], domain="own"))
    model.opset_import.append(opset[1])
    return model


def nested(depth: int) -> onnx.ModelProto:
    shallow = inner = branch(node("Identity", "x", "z"), output="z")
    for _ in range(depth):
        inner = branch(node("If", "flag", "z", then_branch=inner, else_branch=shallow), output="z")
    return within(inner)


EXTERNAL: dict[str, Callable[[], onnx.ModelProto]] = {
    "an offset below 0": lambda: external(offset="-8"),
    "a length below 0": lambda: external(length="-16"),
    "an offset that is no number": lambda: external(offset="four"),
    "a length that is no number": lambda: external(length="0x10"),
    "an offset in other digits": lambda: external(offset="\u0664"),
    "an offset with a NUL": lambda: external(offset="0\0"),
    "a location with a NUL": lambda: external(location="data.bin\0.txt"),
    "a location with an escape": lambda: external(location="\x1b]0;title\x07"),
    "no location": lambda: external(location=""),
    "an absolute location": lambda: external(location="/etc/passwd"),
    "a location above": lambda: external(location="../data.bin"),
    "a location above, within": lambda: external(location="a/../../data.bin"),
    "a link that leads out": lambda: external(location="link.bin"),
    "the folder itself": lambda: external(location="."),
    "a pipe": lambda: external(location="pipe.bin"),
    "links in a circle": lambda: external(location="circle.bin"),
    "a name that is too long": lambda: external(location="a" * 5000),
    "an offset beyond the file": lambda: external(offset="16"),
    "a length beyond the file": lambda: external(length="17"),
    "a sum beyond 64 bits": lambda: external(offset=str(2**63 - 1), length=str(2**63 - 1)),
    "an offset of 30 digits": lambda: external(offset="9" * 30),
    "an offset of 5000 digits": lambda: external(offset="9" * 5000),
    "a length that the shape does not take": lambda: external(length="12"),
}
"""Faults of external data, of the tensor `w`."""

TENSORS: dict[str, Callable[[], onnx.ModelProto]] = {
    "too little data": lambda: initializer(raw_data=b"1234"),
    "too much data": lambda: initializer(raw_data=bytes(1000)),
    "no data": lambda: initializer(raw_data=b""),
    "a size below 0": lambda: initializer(dims=[-4]),
    "sizes whose product is the right one": lambda: initializer(dims=[-2, -2]),
    "sizes beyond all memory": lambda: initializer(dims=[2**40, 2**40]),
    "a type that there is not": lambda: initializer(data_type=99),
    "no type": lambda: initializer(data_type=0),
    "text that claims to be raw": lambda: initializer(data_type=TensorProto.STRING),
}
"""Faults of the tensor `w` itself."""

STRUCTURE: dict[str, Callable[[], onnx.ModelProto]] = {
    "a cycle of one": lambda: with_nodes(node("Add", "x y", "y")),
    "a cycle of two": lambda: with_nodes(node("Add", "x b", "a"), node("Relu", "a", "b"), node("Relu", "b", "y")),
    "a cycle beside the way": lambda: with_nodes(
        node("Relu", "x", "y"), node("Relu", "b", "a"), node("Relu", "a", "b")
    ),
    "a cycle through a branch": lambda: with_nodes(
        helper.make_node("Constant", [], ["flag"], value=numpy_helper.from_array(np.array(True))),
        node(
            "If",
            "flag",
            "y",
            **dict.fromkeys(("then_branch", "else_branch"), branch(node("Relu", "y", "z"), output="z")),
        ),
    ),
    "a cycle within a branch": lambda: within(branch(node("Add", "x q", "z"), node("Relu", "z", "q"), output="z")),
    "a long cycle": lambda: with_nodes(
        node("Add", "x a999", "a0"), *[node("Relu", f"a{i}", f"a{i + 1}") for i in range(999)], node("Relu", "a5", "y")
    ),
    "functions that call each other": recursive_functions,
    "graphs within graphs without end": lambda: nested(20),
    "a name that nothing makes": lambda: with_nodes(node("Add", "x nowhere", "y")),
    "a name that is made twice": lambda: with_nodes(node("Relu", "x", "y"), node("Neg", "x", "y")),
    "an input that is made again": lambda: with_nodes(node("Relu", "w", "x"), node("Neg", "x", "y")),
    "an output that nothing makes": lambda: with_nodes(node("Relu", "x", "z")),
    "no outputs": lambda: changed(lambda model: model.graph.ClearField("output")),
}
"""Faults of the graph's edges."""

HOSTILE = {**EXTERNAL, **TENSORS, **STRUCTURE}
