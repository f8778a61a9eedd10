"""Conditions on sizes: evaluated without executing anything of their text."""

from __future__ import annotations

import pytest

from trtship.errors import SpecError
from trtship.spec import SizeRule, broken_rule, from_json, to_json


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        ("H % 2 == 0", {"H": 4}, {"H": 5}),
        ("H == W", {"H": 4, "W": 4}, {"H": 5, "W": 4}),
        ("H * W <= 256", {"H": 16, "W": 16}, {"H": 16, "W": 17}),
        ("H // 4 * 4 == H and not B > 4", {"H": 8, "B": 4}, {"H": 8, "B": 5}),
        ("H < 8 or 16 < H <= 20", {"H": 17}, {"H": 16}),
        ("max(H, W) - min(H, W) < 3", {"H": 4, "W": 6}, {"H": 4, "W": 7}),
        ("int(H / 1.5) == 4", {"H": 7}, {"H": 8}),
        ("-H < -3", {"H": 4}, {"H": 3}),
        ("16 % (H - 4) == 0", {"H": 8}, {"H": 4}),  # a division by zero is not true
    ],
)
def test_a_rule_says_which_sizes_it_allows(text: str, right: dict[str, int], wrong: dict[str, int]) -> None:
    rule = SizeRule(text=text, where="net.py:7")
    assert rule.allows(right)
    assert not rule.allows(wrong)
    assert rule.letters == right.keys()
    assert broken_rule([SizeRule(text="1 < 2"), rule], wrong) is rule
    assert broken_rule([rule], right) is None


def test_nothing_is_said_of_sizes_that_are_not_given() -> None:
    assert SizeRule(text="H == W").allows({"H": 3})


@pytest.mark.parametrize(
    "text",
    [
        "", "H ==", "H = 3", "__import__('os').system('x')", "H.real == 3", "[H][0]", "lambda: H", "H if W else 3",
        "HW == 3", "'a' * H == 3", "H ** 9 == 1", "1 << H", "max(H, key=W)", "max()", "sum(H)", "(" * 500 + "H",
        "H" + " + H" * 1000, "é == 1", "H == 1j", "(H := 3)", "\\ud800 == H",
    ],
)  # fmt: skip
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"condition on sizes"):
        SizeRule(text=text)


def test_a_manifest_cannot_bring_other_text() -> None:
    rule = SizeRule(text="H % 2 == 0", where="net.py:7")
    assert from_json(to_json(rule), SizeRule, what="rule") == rule
    with pytest.raises(SpecError, match="rule is not valid"):
        from_json(b'{"text": "exit()", "where": ""}', SizeRule, what="rule")


def test_numbers_without_end_are_not_computed() -> None:
    assert not SizeRule(text=" * ".join(["99999999"] * 100) + " == H").allows({"H": 3})
