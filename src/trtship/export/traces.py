"""Compare TorchScript traces of one module at other values and at other sizes: what differs was frozen."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from trtship.export.lines import Line
from trtship.export.values import Seen, watched
from trtship.input_values import InputDomain, is_floating, random_inputs
from trtship.spec import TensorSpec

BUDGET = 15.0
"""Seconds for traces at other sizes; the sizes that are compared with PyTorch do not depend on it."""
MOST_SUSPECTS = 8
"""Sizes with another trace that are compared with PyTorch: the nearest to the traced ones."""


class Traced(msgspec.Struct, frozen=True):
    """What traces show that one trace does not.

    `values` are the lines of the model that took a value of an input's. `differs` says what was not the same in traces
    of other values, and is empty otherwise. `sizes` are the lines that took a size, and `suspects` the sizes at which
    the model ran other operators.
    """

    values: tuple[Line, ...] = ()
    differs: str = ""
    sizes: tuple[Line, ...] = ()
    suspects: tuple[dict[str, int], ...] = ()


def compare_traces(
    module: Any,
    inputs: Sequence[TensorSpec],
    traced: Mapping[str, int],
    *,
    domains: Mapping[str, InputDomain] | None = None,
    others: Sequence[Mapping[str, int]] = (),
) -> Traced:
    """Trace `module` at several values, and at the sizes `others`.

    Args:
        module: The module, in eval mode.
        inputs: Its inputs.
        traced: The sizes of the export.
        domains: The values that the inputs may hold.
        others: Sizes at which the same operators are expected; those that the model does not take are skipped.
    """
    seen = Seen()
    first = _trace(watched(module, seen), _values(inputs, traced, domains, "usual"))
    if seen.values:
        return Traced(values=tuple(seen.values))
    for kind in ("small", "large"):
        second = _trace(watched(module, Seen()), _values(inputs, traced, domains, kind))
        if second != first:
            return Traced(differs=_difference(first, second))
    operators = [step[0] for step in first]
    suspects = []
    until = time.monotonic() + BUDGET
    for sizes in others:
        if time.monotonic() > until:
            break
        try:
            there = _trace(watched(module, Seen()), _values(inputs, sizes, domains, "usual"))
        except Exception:  # a size that the model does not take
            continue
        if [step[0] for step in there] != operators:
            suspects.append(dict(sizes))
    near = sorted(suspects, key=lambda s: sum(abs(s[letter] - size) for letter, size in traced.items()))
    return Traced(sizes=tuple(seen.sizes), suspects=tuple(near[:MOST_SUSPECTS]))


def _values(
    inputs: Sequence[TensorSpec], sizes: Mapping[str, int], domains: Mapping[str, InputDomain] | None, kind: str
) -> tuple[Any, ...]:
    """Tensors for the inputs. `small` and `large` are other numbers; floats of no known domain are 1000 times smaller,
    or positive and 50 times larger, than usual."""
    import torch

    seed = {"usual": 1, "small": 2, "large": 3}[kind]
    feeds = random_inputs(inputs, sizes, seed=seed, domains=domains)
    found = []
    for spec in inputs:
        array = feeds[spec.name]
        domain = (domains or {}).get(spec.name)
        if is_floating(spec.dtype) and (domain is None or domain.kind == "normal"):
            array = {"usual": array, "small": array / 1000, "large": abs(array) * 50}[kind].astype(array.dtype)
        found.append(torch.from_numpy(array))
    return tuple(found)


def _trace(module: Any, example: tuple[Any, ...]) -> list[tuple[str, str]]:
    """Each step of a trace: its operator, and its constants."""
    import torch

    if holds_programs(module):
        return list(_steps(as_program(module, example).inlined_graph))
    tracer: Any = torch.jit  # _get_trace_graph is what the TorchScript exporter itself calls
    graph = tracer._get_trace_graph(module, example, strict=False)[0]
    torch._C._jit_pass_inline(graph)
    return list(_steps(graph))


def holds_programs(module: Any) -> bool:
    """Return whether the module, or a part of it, is a TorchScript program (`torch.jit.script`, `trace`, `load`)."""
    import torch

    return any(isinstance(part, torch.jit.ScriptModule) for part in module.modules())


def as_program(module: Any, example: tuple[Any, ...]) -> Any:
    """Return a module that holds TorchScript programs as one program, in which they keep their own `if` and loops.

    The TorchScript exporter takes a program as it is, and fails on one inside of an ordinary module.
    """
    import torch

    if isinstance(module, torch.jit.ScriptModule):
        return module
    tracer: Any = torch.jit
    return tracer.trace(module, example, check_trace=False, strict=False)


def _steps(block: Any) -> Iterator[tuple[str, str]]:
    for node in block.nodes():
        yield node.kind(), "; ".join(f"{name}={_attribute(node, name)}" for name in sorted(node.attributeNames()))
        for inner in node.blocks():
            yield from _steps(inner)


def _attribute(node: Any, name: str) -> str:
    kind = node.kindOf(name)
    if kind in ("g", "gs"):
        return ""
    value = getattr(node, kind)(name)
    if kind in ("t", "ts"):
        return " ".join(_tensor(t) for t in (value if kind == "ts" else [value]))
    return str(value)


def _tensor(tensor: Any) -> str:
    plain = tensor.detach().contiguous()
    if plain.numel() <= 4:
        return str(plain.tolist())
    return hashlib.sha256(plain.numpy().tobytes()).hexdigest()[:16]


def _difference(first: Sequence[tuple[str, str]], second: Sequence[tuple[str, str]]) -> str:
    for one, other in itertools.zip_longest(first, second):
        if one is None or other is None or one[0] != other[0]:
            return f"with other values, the model runs other operators ({len(first)} and {len(second)} of them)"
        if one != other:
            return f"with other values, a constant of {one[0]} is {other[1]} where it was {one[1]}"
    return ""
