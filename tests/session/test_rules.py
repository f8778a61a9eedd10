"""Sessions refuse sizes that break a rule, and name it; parts of a batch keep to the rules too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trtship.errors import InputError
from trtship.session.base import Session
from trtship.session.plans import Plans
from trtship.spec import ShapeRange, SizeRule, TensorSpec

INPUTS = (TensorSpec(name="x", shape=("B", 3, "H")),)
OUTPUTS = (TensorSpec(name="y", shape=("B", 3, "H")),)
RANGES = {"B": ShapeRange(min=1, opt=2, max=4), "H": ShapeRange(min=8, opt=16, max=32)}


class Doubling(Session):
    runtime, inputs, outputs, ranges = "numpy", INPUTS, OUTPUTS, RANGES

    def __init__(self, *rules: SizeRule) -> None:
        self.rules, self.batches = rules, []  # type: ignore[var-annotated]

    def _run(self, feeds: Any) -> dict[str, Any]:
        self.batches.append(len(feeds["x"]))
        return {"y": 2 * feeds["x"]}


def zeros(batch: int, height: int) -> dict[str, Any]:
    return {"x": np.zeros((batch, 3, height), np.float32)}


def test_a_size_that_breaks_a_rule_is_refused_every_time_with_the_rule_and_its_line() -> None:
    session = Doubling(SizeRule(text="H % 2 == 0", where="net.py:17"), SizeRule(text="H > 9"))
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            session.infer(zeros(2, 13))
        assert caught.value.what == "these sizes break a rule of the model: H % 2 == 0"
        assert "H is 13" in caught.value.why
        assert "net.py:17" in caught.value.why
        assert "x: float32 [B, 3, H]" in caught.value.do
    with pytest.raises(InputError, match="H > 9"):
        session.infer(zeros(2, 8))
    assert session.batches == []
    assert session.infer(zeros(2, 12))["y"].shape == (2, 3, 12)


def test_a_batch_in_parts_keeps_to_the_rules_in_every_part() -> None:
    session = Doubling(SizeRule(text="B % 2 == 0"))
    session.infer(zeros(6, 8))
    assert session.batches == [4, 2]
    with pytest.raises(InputError, match="B % 2 == 0") as caught:
        session.infer(zeros(7, 8))
    assert "in a part of the batch of 7" in caught.value.why
    with pytest.raises(InputError, match="B % 2 == 0"):
        session.infer(zeros(3, 8))


class Engine:
    """What `Plans` asks of an engine with one profile."""

    profiles = ({"x": ((1, 3, 8), (64, 3, 16), (400, 3, 32))},)

    def is_fixed(self, profile: int) -> bool:
        return False


def test_batches_are_rounded_up_to_sizes_that_keep_to_the_rules() -> None:
    ranges = {**RANGES, "B": ShapeRange(min=1, opt=64, max=400)}

    def rounded(*rules: SizeRule) -> tuple[int, ...]:
        return Plans(INPUTS, OUTPUTS, ranges, Engine(), graphs=64, rules=rules)._sizes  # type: ignore[arg-type]

    assert any(size % 2 for size in rounded())
    assert not any(size % 2 for size in rounded(SizeRule(text="B % 2 == 0")))
    assert rounded(SizeRule(text="B * H < 1000")) == ()
    assert rounded(SizeRule(text="H > 9")) == rounded()
