"""Evaluate a condition over sizes, such as `H % 2 == 0`, that comes from a file nobody vouches for.

The text is parsed as Python, and each node becomes a function of ours; nothing of the text is ever executed. Whole
numbers, single letters, arithmetic, comparisons, `and`, `or`, `not`, and calls of `int`, `float`, `min`, `max`, `abs`,
`round`, `floor`, `ceil` and `sqrt` are allowed.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

MAX_LENGTH = 2000
"""Characters of one condition. Python's parser needs stack in proportion to it."""
MAX_VALUE = 2**63
"""Intermediate results beyond it are an error, so that powers cannot fill memory."""

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_CALLS: dict[str, Callable[..., Any]] = {
    "int": int,
    "float": float,
    "min": min,
    "max": max,
    "abs": abs,
    "round": round,
    "floor": math.floor,
    "ceil": math.ceil,
    "sqrt": math.sqrt,
}


def parse_condition(text: str) -> frozenset[str]:
    """Return the letters that the condition `text` depends on. Raises ValueError for text that is not a condition."""
    return frozenset(node.id for node in ast.walk(_parse(text)) if isinstance(node, ast.Name) and node.id not in _CALLS)


def holds(text: str, sizes: Mapping[str, int]) -> bool:
    """Return whether the condition `text` is true of `sizes`.

    A condition that cannot be computed there (a division by zero, a number beyond 64 bits) is not true.

    Raises:
        KeyError: `sizes` lacks a letter of the condition.
        ValueError: `text` is not a condition.
    """
    try:
        return bool(_compiled(text)(sizes))
    except (ArithmeticError, TypeError):
        return False


@lru_cache(maxsize=256)
def _parse(text: str) -> ast.Expression:
    if len(text) > MAX_LENGTH:
        raise ValueError(f"a condition on sizes has at most {MAX_LENGTH} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        for node in ast.walk(tree):
            _check(node)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text[:80]!r} is not a condition on sizes") from error
    return tree


def _check(node: ast.AST) -> None:
    """Raises ValueError for a node that is not allowed."""
    match node:
        case ast.Expression() | ast.BoolOp() | ast.And() | ast.Or() | ast.Compare() | ast.Load():
            return
        case ast.UnaryOp(op=ast.Not() | ast.USub()) | ast.Not() | ast.USub():
            return
        case ast.BinOp(op=op) if type(op) in _BINARY:
            return
        case ast.operator() | ast.cmpop() if type(node) in _BINARY or type(node) in _COMPARE:
            return
        case ast.Constant(value=value) if type(value) in (int, float, bool):
            return
        case ast.Name(id=name) if name in _CALLS or (len(name) == 1 and name.isascii() and name.isalpha()):
            return
        case ast.Call(func=ast.Name(id=name), args=[_, *_], keywords=[]) if name in _CALLS:
            return
    raise ValueError(f"{type(node).__name__} is not allowed in a condition on sizes")


Value = Callable[[Mapping[str, int]], Any]
"""A part of a condition, ready to be computed."""


@lru_cache(maxsize=256)
def _compiled(text: str) -> Value:
    try:
        return _value(_parse(text).body)
    except RecursionError as error:
        raise ValueError(f"{text[:80]!r} is not a condition on sizes") from error


def _value(node: ast.AST) -> Value:
    match node:
        case ast.Constant(value=value):
            return _bounded(lambda sizes: value)
        case ast.Name(id=name):
            return operator.itemgetter(name)
        case ast.BoolOp(op=op, values=values):
            wanted, parts = isinstance(op, ast.Or), [_value(v) for v in values]
            return lambda sizes: any(bool(part(sizes)) is wanted for part in parts) is wanted
        case ast.UnaryOp(op=op, operand=operand):
            inner = _value(operand)
            return (lambda sizes: not inner(sizes)) if isinstance(op, ast.Not) else (lambda sizes: -inner(sizes))
        case ast.BinOp(left=left, op=op, right=right):
            function, one, other = _BINARY[type(op)], _value(left), _value(right)
            return _bounded(lambda sizes: function(one(sizes), other(sizes)))
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            sides = [_value(v) for v in (left, *comparators)]
            steps = list(zip([_COMPARE[type(op)] for op in ops], sides, sides[1:], strict=False))
            return lambda sizes: all(compare(one(sizes), other(sizes)) for compare, one, other in steps)
        case ast.Call(func=ast.Name(id=name), args=args):
            function, arguments = _CALLS[name], [_value(a) for a in args]
            return _bounded(lambda sizes: function(*[argument(sizes) for argument in arguments]))
    raise ValueError(f"{type(node).__name__} is not allowed in a condition on sizes")


def _bounded(value: Value) -> Value:
    def bounded(sizes: Mapping[str, int]) -> Any:
        found = value(sizes)
        if abs(found) > MAX_VALUE:
            raise OverflowError("a number beyond 64 bits")
        return found

    return bounded
