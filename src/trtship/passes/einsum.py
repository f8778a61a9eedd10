"""Write einsum equations in small letters without spaces: TensorRT takes no others, ONNX and PyTorch do."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir


def write_small_letters(model: onnx_ir.Model) -> int:
    """Rename the capital letters of each Einsum to unused small ones, in place, and return how many were rewritten."""
    import onnx_ir as ir

    count = 0
    for node in model.graph:
        if node.op_type != "Einsum" or "equation" not in node.attributes:
            continue
        equation = node.attributes["equation"].as_string()
        written = in_small_letters(equation)
        if written != equation:
            node.attributes["equation"] = ir.AttrString("equation", written)
            count += 1
    return count


def in_small_letters(equation: str) -> str:
    """Return the equation without spaces and, where 26 letters are enough, without capitals.

    Without an arrow, the result has the letters that occur once, in alphabetical order, capitals first: it is written
    out, since the new letters have another order.
    """
    plain = "".join(equation.split())
    capitals = sorted({letter for letter in plain if letter in string.ascii_uppercase})
    free = [letter for letter in string.ascii_lowercase if letter not in plain]
    if not capitals or len(capitals) > len(free):
        return plain
    if "->" not in plain:
        once = "".join(sorted(letter for letter in set(plain) if letter.isalpha() and plain.count(letter) == 1))
        plain += "->" + ("..." if "..." in plain else "") + once
    return plain.translate(str.maketrans("".join(capitals), "".join(free[: len(capitals)])))
