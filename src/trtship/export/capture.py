"""Capture a module with torch.export: its program, and what the program relies on about sizes and values."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from trtship.export.conditions import Conditions, conditions_of
from trtship.export.lines import Line, failing_line, running_line
from trtship.sources.inputs import forward_parameters
from trtship.spec import ShapeRange, TensorSpec, batch_letter

DATA_DEPENDENT = ("GuardOnDataDependentSymNode", "DataDependentOutputException")
"""Names of PyTorch's errors for code that needs the value of a tensor."""
LARGEST = 2**16
"""Of a dynamic size that nobody gave a range."""


class Captured(msgspec.Struct, frozen=True):
    """`program` is a torch.export.ExportedProgram."""

    program: Any
    conditions: Conditions


class DecidesByValues(Exception):
    """Of a model whose Python code decides by the values of its inputs, at `line`."""

    def __init__(self, line: Line) -> None:
        super().__init__(str(line))
        self.line = line


def capture(
    module: Any, example: tuple[Any, ...], inputs: Sequence[TensorSpec], ranges: Mapping[str, ShapeRange]
) -> Captured:
    """Capture `module` with every letter of `inputs` dynamic; with dynamo's strict tracing where the other fails.

    Args:
        module: The module; this may change it.
        example: A tensor for each input.
        inputs: The inputs, in the order of forward's arguments.
        ranges: The sizes of the letters, as far as they are known.

    Raises:
        DecidesByValues: PyTorch found a decision by a value in the model's code, which may have caught its error.
        Exception: whatever else torch.export raises.
    """
    import torch

    names = parameter_names(module)
    batch = batch_letter(inputs)  # its graph is checked at sizes beyond its range, too
    letters = {letter for spec in inputs for letter in spec.letters}
    limits = {letter: _limits(None if letter == batch else ranges.get(letter)) for letter in letters}
    shapes = dynamic_shapes(module, inputs, lambda letter: _dimension(limits[letter]))
    failures: list[Exception] = []
    for strict in (False, True):
        with _guards_with_lines(), _size_settings(shapes), _value_errors() as raised:
            try:
                program = torch.export.export(module, example, dynamic_shapes=shapes, strict=strict)
            except Exception as error:
                line = value_decision(error)
                if line is not None:
                    raise DecidesByValues(line) from error
                failures.append(error)
                continue
        line = _caught_by_model(raised)
        if line is not None:
            raise DecidesByValues(line)
        environment = _environment(program)
        found = Conditions() if environment is None else conditions_of(environment, inputs, names, limits)
        return Captured(program, found)
    raise failures[0]


def parameter_names(module: Any) -> list[str]:
    """Return the names of forward's parameters; one that takes all others starts with `*`, and ends the list."""
    found: list[str] = []
    for parameter in forward_parameters(module).values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            return [*found, f"*{parameter.name}"]
        found.append(parameter.name)
    return found


def dynamic_shapes(module: Any, inputs: Sequence[TensorSpec], dimension: Any) -> tuple[Any, ...]:
    """Return what torch.export takes as `dynamic_shapes`: `dimension(letter)` for each letter, nested once more where
    forward takes `*args`."""
    shapes = tuple({a: dimension(s) for a, s in enumerate(spec.shape) if isinstance(s, str)} for spec in inputs)
    names = parameter_names(module)
    if names and names[-1].startswith("*"):
        return (*shapes[: len(names) - 1], shapes[len(names) - 1 :])
    return shapes


def _limits(sizes: ShapeRange | None) -> tuple[int, int]:
    """The sizes that torch.export may assume; it takes no range of one size."""
    return (sizes.min, sizes.max) if sizes and sizes.min < sizes.max else (1, LARGEST)


def _dimension(limits: tuple[int, int]) -> Any:
    """AUTO: guards on it are kept, and are not an error."""
    import torch

    return torch.export.Dim.AUTO(min=limits[0], max=limits[1])


def value_decision(error: BaseException) -> Line | None:
    """Return the line at which an error of torch.export says that the model decides by a value; None for another error,
    and for a line that only checks, or where an operator needs the value and not the model's Python."""
    one: BaseException | None = error
    while one is not None:
        kind = getattr(getattr(one, "error_type", None), "name", "")
        if type(one).__name__ in DATA_DEPENDENT or kind == "DYNAMIC_CONTROL_FLOW":
            line = _strict_line(one) or failing_line(error)
            return line if line is not None and line.decides and not line.only_checks else None
        one = one.__cause__ or one.__context__
    return None


def _strict_line(error: BaseException) -> Line | None:
    """Where dynamo read the model's code and did not run it, its error has the stack."""
    stack = getattr(error, "real_stack", None)
    return Line(stack[-1].filename, stack[-1].lineno, stack[-1].name) if stack else None


def _environment(program: Any) -> Any:
    """The ShapeEnv; None for a program without a dynamic size."""
    import torch

    for node in program.graph.nodes:
        value = node.meta.get("val")
        for size in value.shape if isinstance(value, torch.Tensor) else [value]:
            if isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool):
                return size.node.shape_env
    return None


def _caught_by_model(raised: Sequence[BaseException]) -> Line | None:
    """Return the line that decides by a value, of a model that caught PyTorch's error and went on without the value.

    An error that PyTorch caught itself never came to the model's code, and has none of its lines in its traceback.
    """
    for error in raised:
        line = failing_line(error)
        if line is not None and line.decides:
            return line
    return None


@contextlib.contextmanager
def _value_errors() -> Iterator[list[BaseException]]:
    """Collect every error made meanwhile that says that code needs the value of a tensor, caught or not."""
    from torch._subclasses.fake_tensor import DataDependentOutputException
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    raised: list[BaseException] = []

    def noting(begin: Any) -> Any:
        def noted(self: Any, *args: Any, **kwargs: Any) -> None:
            begin(self, *args, **kwargs)
            raised.append(self)

        return noted

    with contextlib.ExitStack() as stack:
        for kind in (DataDependentOutputException, GuardOnDataDependentSymNode):
            stack.callback(setattr, kind, "__init__", kind.__init__)
            kind.__init__ = noting(kind.__init__)  # type: ignore[method-assign]
        yield raised


@contextlib.contextmanager
def _guards_with_lines() -> Iterator[None]:
    """The guards of every ShapeEnv made meanwhile know the line of the model's code that was running."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    begin = ShapeEnv.__init__

    def with_lines(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        self.guards = _Noted(self.guards)

    ShapeEnv.__init__ = with_lines  # type: ignore[method-assign]
    try:
        yield
    finally:
        ShapeEnv.__init__ = begin  # type: ignore[method-assign]


class _Noted(list[Any]):
    """Guards, and in `lines` the line of the model's code at each."""

    def __init__(self, guards: Any) -> None:
        super().__init__(guards)
        self.lines: list[Line | None] = [None] * len(self)

    def append(self, guard: Any) -> None:
        super().append(guard)
        self.lines.append(running_line())


@contextlib.contextmanager
def _size_settings(shapes: Any) -> Iterator[None]:
    """What torch.onnx sets around its own captures: sizes of 0 and 1 are like others, and recurrent layers become loops
    (PyTorch 2.12 and later)."""
    import torch
    from torch.fx.experimental import _config

    config: Any = _config

    with contextlib.ExitStack() as stack:
        if hasattr(config, "backed_size_oblivious"):
            stack.enter_context(config.patch(backed_size_oblivious=True))
        try:
            from torch.export import _patches
        except ImportError:
            _patches = None  # type: ignore[assignment]
        for name in ("register_lstm_while_loop_decomposition", "register_gru_while_loop_decomposition"):
            if any(shapes) and hasattr(_patches, name):
                stack.enter_context(getattr(_patches, name)())
        instance, torch.jit.isinstance = torch.jit.isinstance, isinstance
        try:
            yield
        finally:
            torch.jit.isinstance = instance
