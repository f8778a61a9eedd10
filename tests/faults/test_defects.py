"""Every defect is caught, by the check that it is for, and the search names a guilty node."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from defects import DEFECTS, Defect
from judging import Judged, failed, opener
from page import PAGE, page_rows, plan_rows, plans_head, right_ones, row_of, session_row
from session_defects import SESSION_DEFECTS, SessionDefect

Digits = Callable[[str], Judged]


def test_there_are_at_least_fifteen() -> None:
    assert len(DEFECTS) >= 15
    assert len({defect.name for defect in DEFECTS}) == len(DEFECTS)


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda one: one.name)
def test_a_defect_of_the_graph_is_caught_and_its_node_named(digits: Digits, defect: Defect) -> None:
    judged = digits(defect.precision)
    model = judged.graph()
    guilty = defect.plant(model)
    assert failed(judged.verdicts(opener(model))) >= set(defect.caught_by)
    located = judged.locate(model)
    assert located is not None
    assert located.node in guilty
    assert set(guilty) & set(located.nodes)
    assert row_of(defect, located) in page_rows()


@pytest.mark.parametrize("defect", SESSION_DEFECTS, ids=lambda one: one.name)
def test_a_defect_of_the_runtime_is_caught(digits: Digits, defect: SessionDefect) -> None:
    assert session_row(defect) in page_rows()
    judged = digits("fp16")
    opens = opener(judged.graph())
    assert failed(judged.verdicts(lambda: defect.wrap(opens()), is_plan=True)) >= set(defect.caught_by)


def test_the_page_has_all_of_them_and_what_must_pass_and_nothing_else() -> None:
    """`python tests/faults/page.py` writes it."""
    rows = [line for line in page_rows() if line.startswith("| ") and not line.startswith(("| defect |", "| --- "))]
    assert len(rows) == len(DEFECTS) + len(SESSION_DEFECTS) + len(plan_rows())
    assert set(plan_rows()) <= set(rows)
    assert plans_head().split("\n| defect")[0].strip() in PAGE.read_text(encoding="utf-8")
    assert [line for line in page_rows() if line.startswith("- ")] == list(right_ones())


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_without_a_defect_nothing_is_caught_and_nothing_named(digits: Digits, precision: str) -> None:
    judged = digits(precision)
    assert failed(judged.verdicts(opener(judged.graph()))) == set()
    assert judged.locate(judged.graph()) is None
