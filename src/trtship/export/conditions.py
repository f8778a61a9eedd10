"""PyTorch's guards on sizes, as conditions over the letters of the inputs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from trtship.export.lines import Line, is_models
from trtship.size_condition import MAX_LENGTH
from trtship.spec import SizeRule, TensorSpec

_RELATIONS = {
    "Equality": "==", "Unequality": "!=", "StrictLessThan": "<", "LessThan": "<=", "StrictGreaterThan": ">",
    "GreaterThan": ">=",
}  # fmt: skip
_OPERATORS = {
    "Mod": "%", "PythonMod": "%", "FloorDiv": "//", "CleanDiv": "//", "IntTrueDiv": "/", "FloatTrueDiv": "/",
}  # fmt: skip
_CALLS = {
    "TruncToInt": "int", "FloorToInt": "floor", "CeilToInt": "ceil", "RoundToInt": "round", "ToFloat": "float",
    "floor": "floor", "ceiling": "ceil", "Max": "max", "Min": "min", "Abs": "abs", "OpaqueUnaryFn_sqrt": "sqrt",
}  # fmt: skip
MOST_POWER = 4
"""The largest power that is written as a product."""


class Condition(msgspec.Struct, frozen=True):
    """What an exporter relied on about the sizes: the rule, and the line of the model that asked, where it is known."""

    rule: SizeRule
    line: Line | None = None

    @property
    def decides(self) -> bool:
        """Whether the model itself asks, in an `if`, a loop, a comparison: not an operator of PyTorch's."""
        return self.line is not None and self.line.decides


class Conditions(msgspec.Struct, frozen=True):
    """All conditions of one capture. `unknown` are those that cannot be written as a rule, as PyTorch prints them;
    `fixed` are letters that became constants."""

    known: tuple[Condition, ...] = ()
    unknown: tuple[str, ...] = ()
    fixed: frozenset[str] = frozenset()

    @property
    def rules(self) -> tuple[SizeRule, ...]:
        return tuple(condition.rule for condition in self.known)


class NotWritable(Exception):
    """Of an expression that has no text as a condition."""


def conditions_of(
    environment: Any,
    inputs: Sequence[TensorSpec],
    parameters: Sequence[str],
    limits: Mapping[str, tuple[int, int]],
) -> Conditions:
    """Return the conditions under which a captured program is the model.

    Args:
        environment: The ShapeEnv of the program.
        inputs: The inputs, in the order of forward's arguments.
        limits: The least and the largest size of each letter, as the capture was given them.
        parameters: The names of forward's arguments; the last starts with `*` where it takes any number.
    """
    letters = _letters(environment, inputs, parameters)
    known: dict[str, Condition] = {}
    unknown: list[str] = []
    lines = getattr(environment.guards, "lines", None) or [None] * len(environment.guards)
    for guard, line in zip(environment.guards, lines, strict=True):
        if _always(guard.expr, letters, limits):
            continue
        found = line or _line(guard)
        try:
            text = condition_text(guard.expr, letters)
            rule = SizeRule(text=text, where=found.where if found else "")
        except (NotWritable, ValueError):
            unknown.append(str(guard.expr)[:200])
            continue
        known.setdefault(text, Condition(rule, found))
    for symbol, letter in letters.items():
        for text in _narrowed(environment, symbol, letter, limits[letter]):
            known.setdefault(text, Condition(SizeRule(text=text)))
    fixed = {letters[s] for s, value in environment.replacements.items() if s in letters and value.is_number}
    return Conditions(tuple(known.values()), tuple(unknown), frozenset(fixed))


def _letters(environment: Any, inputs: Sequence[TensorSpec], parameters: Sequence[str]) -> dict[Any, str]:
    """The letter of each symbol: where PyTorch says that the symbol is from, as `L['image'].size()[2]`."""
    places: dict[str, str] = {}
    for index, spec in enumerate(inputs):
        last = parameters[min(index, len(parameters) - 1)] if parameters else ""
        name = f"L['{last}']"
        if last.startswith("*"):
            name = f"L['{last[1:]}'][{index - len(parameters) + 1}]"
        places |= {f"{name}.size()[{axis}]": size for axis, size in enumerate(spec.shape) if isinstance(size, str)}
    found = {}
    for symbol, sources in environment.var_to_sources.items():
        for source in sources:
            name = source.name() if callable(source.name) else source.name  # a property since PyTorch 2.10
            if name in places:
                found[symbol] = places[name]
    return found


def _always(guard: Any, letters: Mapping[Any, str], limits: Mapping[str, tuple[int, int]]) -> bool:
    """Whether the guard holds for all sizes within the limits."""
    try:
        from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

        ranges = {symbol: ValueRanges(*limits[letters[symbol]]) for symbol in guard.free_symbols}
        found = bound_sympy(guard, ranges)
        return bool(found.is_singleton() and found.lower)
    except Exception:  # no promise of PyTorch's: the guard is kept then
        return False


def _narrowed(environment: Any, symbol: Any, letter: str, limits: tuple[int, int]) -> Iterator[str]:
    """What PyTorch holds of a size beyond what it was told."""
    found = environment.var_to_range.get(symbol)
    if found is None or environment.replacements.get(symbol) is not None:
        return
    if found.lower > limits[0]:
        yield f"{letter} >= {int(found.lower)}"
    if found.upper < limits[1]:
        yield f"{letter} <= {int(found.upper)}"


def _line(guard: Any) -> Line | None:
    """The line that PyTorch says a guard is from, where that is the model's."""
    place = guard.sloc.maybe_user_loc
    if isinstance(place, str) and (match := re.search(r"(\S+):(\d+) in (\S+)", place)):
        return Line(match[1], int(match[2]), match[3])
    frame = guard.sloc.framework_loc
    if frame is not None and not isinstance(frame, str) and is_models(frame.filename):
        return Line(frame.filename, frame.lineno, frame.name)
    return None


def condition_text(expression: Any, letters: Mapping[Any, str]) -> str:
    """Return a sympy expression of PyTorch's as a condition that `SizeRule` takes. Raises NotWritable."""
    text = _text(expression, letters)
    if len(text) > MAX_LENGTH:
        raise NotWritable(text[:100])
    return text[1:-1] if text.startswith("(") and _closes_last(text) else text


def _closes_last(text: str) -> bool:
    """Whether the first bracket is closed by the last character."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return index == len(text) - 1
    return False


def _text(e: Any, letters: Mapping[Any, str]) -> str:
    kind, args = type(e).__name__, e.args
    if e.is_Symbol:
        if e not in letters:
            raise NotWritable(str(e))
        return letters[e]
    if kind in ("BooleanTrue", "BooleanFalse"):
        return str(e)
    if e.is_Integer:
        return str(int(e)) if e >= 0 else f"({int(e)})"
    if getattr(e, "is_Rational", False):
        return f"({int(e.p)} / {int(e.q)})"
    if getattr(e, "is_Float", False):
        return repr(float(e))
    parts = [_text(a, letters) for a in args]
    if kind in _RELATIONS:
        return f"({_open(parts[0])} {_RELATIONS[kind]} {_open(parts[1])})"
    if kind in _OPERATORS:
        return f"({parts[0]} {_OPERATORS[kind]} {parts[1]})"
    if kind in _CALLS:
        return f"{_CALLS[kind]}({', '.join(map(_open, parts))})"
    if kind == "Not":
        return f"(not {parts[0]})"
    if kind in ("And", "Or"):
        return f"({f' {kind.lower()} '.join(map(_open, parts))})"
    if kind == "Add":
        return f"({' + '.join(parts)})"
    if kind == "Mul" and parts[0] == "(-1)":
        return f"(-{parts[1]})" if len(parts) == 2 else f"(-({' * '.join(parts[1:])}))"
    if kind == "Mul":
        return f"({' * '.join(parts)})"
    if kind == "Pow" and args[1].is_Integer and 2 <= args[1] <= MOST_POWER:
        return f"({' * '.join([parts[0]] * int(args[1]))})"
    if kind == "Pow" and args[1] == -1:
        return f"(1 / {parts[0]})"
    if kind == "PowByNatural" and args[1].is_Integer and 1 <= args[1] <= MOST_POWER:
        return f"({' * '.join([parts[0]] * int(args[1]))})"
    raise NotWritable(kind)


def _open(text: str) -> str:
    """Without brackets around the whole, where comparisons and calls need none."""
    inner = text[1:-1]
    return inner if text.startswith("(") and _closes_last(text) and not inner.startswith("-") else text
