"""A candidate that is checked in a process of its own, as it is where there is a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deployed import copy_of, edit_graph
from trtship.bundle import Bundle
from trtship.bundle.verify import check_bundle
from trtship.deployment.search.check_process import check_apart
from trtship.progress import SILENT


@pytest.fixture
def bundle(deployed: Callable[[str, str], Path], tmp_path: Path) -> Bundle:
    return Bundle.open(copy_of(deployed("colours", "fp16"), tmp_path))


def test_it_comes_to_the_same_verdicts(bundle: Bundle) -> None:
    found = check_apart(bundle, eval_dir=None, family=bundle.manifest.family, progress=SILENT)
    here = check_bundle(bundle, family=bundle.manifest.family)
    assert [(v.subject, v.gate, v.state, v.worst) for v in found] == [
        (v.subject, v.gate, v.state, v.worst) for v in here
    ]


def test_what_goes_wrong_there_fails_the_plan(bundle: Bundle) -> None:
    edit_graph(bundle.path(bundle.manifest.graph), lambda model: model.graph.node.pop())
    (verdict,) = check_apart(bundle, eval_dir=None, family=bundle.manifest.family, progress=SILENT)
    assert (verdict.subject, verdict.state) == ("plan", "failed")
    assert "cannot be trusted" in verdict.reason
