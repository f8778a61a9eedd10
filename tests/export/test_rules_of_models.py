"""Models that ask for sizes: what they ask becomes a rule, tried, and refused where the user's range breaks it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from trtship.errors import ExportMismatchError, SpecError
from trtship.export import EXPORTERS, ExportReport, onnx_from_torch
from trtship.export.check import comparing
from trtship.export.conditions import Condition, Conditions, condition_text
from trtship.export.lines import Line
from trtship.export.rules import Asked, settle_rules
from trtship.passes.thaw_unknown import thaw
from trtship.progress import Progress
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import ShapeRange, SizeRule, TensorSpec, broken_rule

IMAGE = (TensorSpec(name="image", shape=("B", 3, "H", "W")),)
RANGES = {"B": "1:2:6", "H": "8:16:32", "W": "8:16:32"}
Forward = Callable[[torch.Tensor], torch.Tensor]


class Model(torch.nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.run = torch.nn.Conv2d(3, 4, 1), forward

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.run(self.conv(image))


def odd(x: torch.Tensor) -> torch.Tensor:
    if x.shape[2] % 2 == 1:
        x = F.pad(x, (0, 0, 0, 1), mode="replicate")
    return F.avg_pool2d(x, 2)


def window(x: torch.Tensor) -> torch.Tensor:
    h, w = x.shape[2:]
    if h % 4 or w % 4:
        x = F.pad(x, (0, (4 - w % 4) % 4, 0, (4 - h % 4) % 4))
    b, c, h, w = x.shape
    return x.view(b, c, h // 4, 4, w // 4, 4).amax((3, 5)).mean((2, 3))


def floors(x: torch.Tensor) -> torch.Tensor:
    h = x.shape[2]
    return (x * 2 if h // 4 * 4 != h else x).mean((2, 3))


def one_size(x: torch.Tensor) -> torch.Tensor:
    return (x + 1 if x.shape[3] == 17 else x).mean((2, 3))


def batch(x: torch.Tensor) -> torch.Tensor:
    return (x * 2 if x.shape[0] == 5 else x).mean((2, 3))


def checked(x: torch.Tensor) -> torch.Tensor:
    assert x.shape[2] % 8 == 0
    return x.mean((2, 3))


def large(x: torch.Tensor) -> torch.Tensor:
    return (x * 2 if x.shape[2] > 20 else x).mean((2, 3))


def area(x: torch.Tensor) -> torch.Tensor:
    return (x * 2 if x.shape[2] * x.shape[3] > 600 else x).mean((2, 3))


def square(x: torch.Tensor) -> torch.Tensor:
    return (x * 2 if x.shape[2] == x.shape[3] else x).mean((2, 3))


def large_batch(x: torch.Tensor) -> torch.Tensor:
    return (x * 2 if x.shape[0] > 4 else x).mean((2, 3))


def anything(x: torch.Tensor) -> torch.Tensor:
    return F.adaptive_avg_pool2d(F.interpolate(x, scale_factor=2.0), 1)


class Heard(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def export(forward: Forward | torch.nn.Module, target: Path, **options: Any) -> ExportReport:
    module = forward if isinstance(forward, torch.nn.Module) else Model(forward)
    ranges = {letter: ShapeRange.parse(text) for letter, text in {**RANGES, **options.pop("ranges", {})}.items()}
    return onnx_from_torch(
        module.eval().requires_grad_(False),
        target,
        **{"inputs": IMAGE, "outputs": ["output"], "ranges": ranges, "thaw": thaw, **options},
    )


@pytest.mark.parametrize(
    ("forward", "rules", "breaking"),
    [
        (odd, ["H % 2 != 1"], {"H": 13}),
        (window, ["H % 4 == 0", "W % 4 == 0"], {"W": 14}),
        (floors, ["4 * (H // 4) == H"], {"H": 10}),
        (one_size, ["W != 17"], {"W": 17}),
        (batch, ["B != 5"], {"B": 5}),
        (checked, ["H % 8 == 0"], {"H": 12}),
    ],
)
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_condition_on_a_size_becomes_a_rule(
    forward: Forward, rules: list[str], breaking: dict[str, int], exporter: str, tmp_path: Path
) -> None:
    if exporter == "torchscript" and forward in (floors, one_size, batch, checked):
        pytest.skip("the conditions are torch.export's, whoever writes the graph")
    heard = Heard()
    report = export(forward, tmp_path / "m.onnx", exporter=exporter, progress=heard)
    assert [rule.text for rule in report.rules] == rules
    assert all(rule.where.startswith("test_rules_of_models.py:") for rule in report.rules)
    assert len([note for note in heard.notes if "refused at run time" in note]) == len(rules)
    assert broken_rule(report.rules, {"B": 2, "H": 16, "W": 16, **breaking}) is not None
    assert all(broken_rule(report.rules, m.sizes) is None for m in report.checks)
    module = Model(forward).eval()
    with OnnxRuntimeSession(tmp_path / "m.onnx") as session, torch.no_grad():
        for h in range(8, 33, 3):
            for w, b in ((16, 2), (17, 3), (32, 5)):
                if broken_rule(report.rules, {"B": b, "H": h, "W": w}) is None:
                    x = torch.randn(b, 3, h, w)
                    torch.testing.assert_close(session.infer({"image": x})["output"], module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("forward", "text", "advice"),
    [
        (large, "H <= 20", "--size H=8:16:20"),
        (area, "W * H <= 600", "choose ranges that keep to it"),
        (square, "H == W", "one letter in --input for both"),
        (large_batch, "B <= 4", "--batch 1:2:4"),
    ],
)
def test_a_range_whose_ends_break_a_rule_is_refused_with_the_rule(
    forward: Forward, text: str, advice: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError) as caught:
        export(forward, tmp_path / "m.onnx")
    assert f"is the model only where {text}" in caught.value.what
    assert f"in {forward.__name__}: `return" in caught.value.why
    assert advice in caught.value.do
    assert caught.value.exit_code == 2


def test_the_advice_is_a_range_that_is_taken(tmp_path: Path) -> None:
    report = export(large, tmp_path / "m.onnx", ranges={"H": "8:16:20"})
    assert report.rules == ()


def test_odd_ends_are_refused_with_even_ones(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        export(odd, tmp_path / "m.onnx", ranges={"H": "7:16:33"})
    assert "breaks that" in caught.value.what
    assert "--size H=8:16:32" in caught.value.do


def test_a_range_on_the_other_side_of_the_condition_is_exported_there(tmp_path: Path) -> None:
    report = export(large_batch, tmp_path / "m.onnx", ranges={"B": "5:5:8"})
    assert (report.traced["B"], report.rules) == (5, ())


def test_a_square_model_with_one_letter_has_no_rule(tmp_path: Path) -> None:
    inputs = (TensorSpec(name="image", shape=("B", 3, "H", "H")),)
    ranges = {"B": ShapeRange.parse("1:2:4"), "H": ShapeRange.parse("8:16:32")}
    report = onnx_from_torch(Model(square).eval(), tmp_path / "m.onnx", inputs=inputs, outputs=["o"], ranges=ranges)
    assert report.rules == ()


def test_a_model_for_any_size_has_no_rule(tmp_path: Path) -> None:
    report = export(anything, tmp_path / "m.onnx")
    assert (report.rules, report.exporter) == ((), "dynamo")
    assert {"B": 1, "H": 8, "W": 8} in [m.sizes for m in report.checks]
    assert {"B": 6, "H": 32, "W": 32} in [m.sizes for m in report.checks]


def test_a_batch_that_a_model_loops_over_is_refused(tmp_path: Path) -> None:
    def loop(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([row.mean((1, 2)) * (index + 1) for index, row in enumerate(x)])

    with pytest.raises((ExportMismatchError, SpecError)):
        export(loop, tmp_path / "m.onnx")


def test_what_excludes_few_sizes_that_are_all_the_same_is_no_rule(tmp_path: Path) -> None:
    def harmless(x: torch.Tensor) -> torch.Tensor:
        return (x * 1.0 if x.shape[2] == 32 else x).mean((2, 3))

    assert export(harmless, tmp_path / "m.onnx").rules == ()


def test_a_size_that_the_model_itself_does_not_take_between_the_ends_is_left_out(tmp_path: Path) -> None:
    """Without torch.export there is no rule, and at H=9 both PyTorch and the graph fail."""

    class Halves(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if torch.compiler.is_exporting():
                raise TypeError("nothing for torch.export")
            b, c, h, w = image.shape
            return image.view(b, c, h // 2, 2, w).mean((3, 4))

    report = export(Halves(), tmp_path / "m.onnx")
    assert report.exporter == "torchscript"
    assert {m.sizes["H"] % 2 for m in report.checks} == {0}


def test_an_expression_without_text_is_unknown() -> None:
    import sympy

    h, w = sympy.Symbol("s0", integer=True, positive=True), sympy.Symbol("s1", integer=True, positive=True)
    assert condition_text(sympy.Eq(h**2 - w, 3 * w), {h: "H", w: "W"}).count("H") == 2
    assert condition_text(sympy.Or(h < 3, sympy.Ne(w, 4)), {h: "H", w: "W"}) == "H < 3 or W != 4"
    with pytest.raises(Exception, match="sin"):
        condition_text(sympy.sin(h) > 0, {h: "H"})
    assert Conditions().rules == ()


def test_lines_are_told_apart() -> None:
    here = Path(__file__).read_text().splitlines()

    def line(text: str) -> Line:
        return Line(__file__, next(n for n, code in enumerate(here, 1) if text in code))

    assert line("assert x.shape[2] % 8 == 0").only_checks
    assert not line("if x.shape[2] % 2 == 1:").only_checks
    assert line("if x.shape[2] % 2 == 1:").decides
    assert not line("b, c, h, w = x.shape").decides
    assert line("return (x * 2 if x.shape[2] > 20 else x)").decides
    assert Line("/nowhere.py", 3).decides


def test_an_operators_rule_is_tried_where_the_models_own_rules_allow_it(tmp_path: Path) -> None:
    def asserts(x: torch.Tensor) -> torch.Tensor:
        assert x.shape[3] % 4 == 0
        return x.mean((2, 3))  # the graph gives an answer where the model fails

    module = Model(asserts).eval().requires_grad_(False)
    ranges = {"B": ShapeRange.parse("1:2:6"), "H": ShapeRange.parse("8:8:8"), "W": ShapeRange.parse("4:16:32")}
    onnx_from_torch(module, tmp_path / "m.onnx", inputs=IMAGE, outputs=["output"], ranges=ranges)
    own = Condition(SizeRule(text="W % 4 == 0"), Line("gone.py", 1))
    operators = Condition(SizeRule(text="max(1, W // 4) != 1"))  # of W=4 to 7; the model takes only the first
    asked = Asked(ranges, {"B": 2, "H": 8, "W": 16}, "B")
    with comparing(module, tmp_path / "m.onnx", inputs=IMAGE, outputs=["output"]) as comparer:
        assert settle_rules([operators, own], asked, comparer) == (own,)


def test_a_negative_size_reads_as_one() -> None:
    sympy = pytest.importorskip("sympy")
    from torch.utils._sympy.functions import PythonMod

    h, w = sympy.symbols("s0 s1", integer=True, positive=True)
    letters = {h: "H", w: "W"}
    padding = condition_text(sympy.Eq(PythonMod(-h, 8), 0), letters)
    assert padding == "(-H) % 8 == 0"
    product = condition_text(sympy.Eq(3 - h * w, -12), letters)
    for i in range(1, 20):
        assert SizeRule(text=padding).allows({"H": i, "W": 1}) == (i % 8 == 0)
        assert SizeRule(text=product).allows({"H": i, "W": 5}) == (i == 3)
