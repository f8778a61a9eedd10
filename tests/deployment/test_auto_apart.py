"""A candidate that is checked in a process of its own, as it is where there is a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deployed import copy_of, edit_graph
from trtship.bundle import Bundle
from trtship.bundle.verify import check_bundle
from trtship.deployment.search.check_process import check_apart
from trtship.progress import SILENT
from trtship.verify import Verdict


@pytest.fixture
def bundle(deployed: Callable[[str, str], Path], tmp_path: Path) -> Bundle:
    return Bundle.open(copy_of(deployed("colours", "fp16"), tmp_path))


def test_it_comes_to_the_same_verdicts(bundle: Bundle) -> None:
    found = check_apart(bundle, eval_dir=None, family=bundle.manifest.family, progress=SILENT)
    here = check_bundle(bundle, family=bundle.manifest.family)
    assert [(v.subject, v.gate, v.state, v.worst) for v in found] == [
        (v.subject, v.gate, v.state, v.worst) for v in here
    ]


MARK = "this was known"


def marked(verdicts: tuple[Verdict, ...], **changes: Any) -> tuple[Verdict, ...]:
    return tuple(msgspec.structs.replace(v, note=MARK, **changes) for v in verdicts)


@pytest.mark.parametrize("apart", [True, False])
def test_what_is_known_of_the_fp32_graph_is_not_asked_again(bundle: Bundle, apart: bool) -> None:
    family = bundle.manifest.family
    here = check_bundle(bundle, family=family)
    if apart:
        found = check_apart(bundle, eval_dir=None, family=family, known=marked(here), progress=SILENT)
    else:
        found = check_bundle(bundle, family=family, known=marked(here))
    assert {v.subject for v in found if v.note == MARK} == {"graph fp32"}
    assert [(v.subject, v.gate, v.state) for v in found] == [(v.subject, v.gate, v.state) for v in here]


@pytest.mark.parametrize("why", ["it failed", "a wider bound", "a gate is missing", "a wider row"])
def test_what_is_known_and_says_less_is_asked_again(bundle: Bundle, why: str) -> None:
    here = check_bundle(bundle, family=bundle.manifest.family)
    first = next(v for v in here if v.gate == "rel_l2")
    assert first.bound is not None
    known = marked(here)
    if why == "it failed":
        known = marked(here, state="failed")
    elif why == "a gate is missing":
        known = tuple(v for v in known if v.gate != "rel_l2")
    elif why == "a wider bound":
        known = marked(here, bound=msgspec.structs.replace(first.bound, value=2 * first.bound.value))
    else:
        known = marked(here, bound=msgspec.structs.replace(first.bound, rows={"black": 2 * first.bound.value}))
    found = check_bundle(bundle, family=bundle.manifest.family, known=known)
    assert not any(v.note == MARK for v in found)


def test_what_goes_wrong_there_fails_the_plan(bundle: Bundle) -> None:
    edit_graph(bundle.path(bundle.manifest.graph), lambda model: model.graph.node.pop())
    (verdict,) = check_apart(bundle, eval_dir=None, family=bundle.manifest.family, progress=SILENT)
    assert (verdict.subject, verdict.state) == ("plan", "failed")
    assert "cannot be trusted" in verdict.reason
