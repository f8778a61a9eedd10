"""Numbers and names as the page writes them."""

from __future__ import annotations

from pathlib import PurePosixPath

from markupsafe import Markup

GATES = {
    "rel_l2": "relative L2",
    "rel_l2_fp64": "relative L2 against float64",
    "rel_l2_given": "relative L2 on inputs given",
    "cosine": "cosine",
    "top1_drop": "top-1 drop",
}
"""Every other gate is a probe, whose name reads well with spaces."""

FAMILIES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
THIN = "\u2009"


def gate_name(gate: str) -> str:
    return GATES.get(gate, gate.replace("_", " "))


def size(value: float | None) -> Markup:
    """An error or a bound: two digits and a power of ten."""
    if value is None:
        return Markup("not finite")
    if value == 0:
        return Markup("0")
    if 0.01 <= abs(value) < 1000:
        return Markup(f"{value:.3g}")
    mantissa, exponent = f"{value:.1e}".split("e")
    power = str(int(exponent)).replace("-", "−")
    return Markup('<span class="n">{}</span>').format(Markup(f"{mantissa}{THIN}×{THIN}10<sup>{power}</sup>"))


def points(value: float | None) -> str:
    """Percent, or percentage points."""
    return "" if value is None else f"{value + 0.0:.2f}".replace("-", "−")


def figure(gate: str, value: float | None) -> Markup | str:
    """What a gate holds against its bound, as such figures are written."""
    if gate == "cosine" and value is not None:
        return f"{value:.6f}"
    return points(value) if gate == "top1_drop" else size(value)


def count(value: float) -> str:
    """Thousands apart: `18 003`."""
    return f"{value:,.0f}".replace(",", THIN)


def ms(value: float) -> str:
    """Three digits after the point below 100 ms, else one."""
    return f"{value:.3f}" if value < 100 else f"{value:.1f}"


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 100 else f"{int(value) // 60} min {int(value) % 60} s"


def short_source(source: str) -> str:
    """A file's name without its folders; a model's name of a library as it is."""
    return PurePosixPath(source).name if ".py:" in source or source.endswith(".onnx") else source


def several(number: int, noun: str) -> str:
    """`1 check`, `2 checks`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip(" ,") + "…"
