"""docs/faults.md: what was planted, what caught it, what the search named. Its tests hold each row to what they find.

python tests/faults/page.py     # writes the page anew: about a minute
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from defects import DEFECTS, Defect
from judging import Judged, failed, opener
from models import MODELS, PASSES
from session_defects import SESSION_DEFECTS, SessionDefect
from variants import VARIANTS

from trtship.verify.locate import Located
from trtship.verify.verdict import COMPARISONS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "faults.md"
ON_GPU = ROOT / "benchmarks" / "results" / "gpu_faults.json"
HEAD = """# Planted faults

Defects that exporters, passes and runtimes have had, planted one at a time in the digits Swin (`tests/faults`): in
the strongly typed graph that its plan is built from, or in the session that runs it. `trtship verify`'s own checks must
catch each, the one that it is for among them, and `trtship debug`'s search must name a node that is guilty. The checks
are a comparison with eager PyTorch (relative L2 at several batch sizes) and the probes.

The first two tables ran through onnxruntime on a CPU, the third is of real plans on a GPU (`tests/gpu`).
`PYTHONPATH=tests python tests/faults/page.py` writes this page, and the tests fail where it says something else than
they find.

## In the graph

| defect | precision | what was planted | caught by | node that the search named |
| --- | --- | --- | --- | --- |
"""
IN_SESSIONS = """
## In the runtime

There is no node to name: the graph is right.

| defect | what was planted | caught by |
| --- | --- | --- |
"""
IN_PLANS = """
## In plans, on a GPU

Plans that were built from graphs with these defects, and run: {where}, by `{command}`.

| defect | the test | caught by |
| --- | --- | --- |
"""
RIGHT = """
## Right, and must pass

"""


def checks(names: tuple[str, ...]) -> str:
    """In words: `relative L2, probe changed row`."""
    words = {"rel_l2": "relative L2", "top1_drop": "top-1 drop"}
    return ", ".join(words.get(n, n if n in COMPARISONS else f"probe *{n.replace('_', ' ')}*") for n in names)


def row_of(defect: Defect, located: Located) -> str:
    caught = checks(defect.caught_by)
    return f"| {defect.name} | {defect.precision} | {defect.what} | {caught} | `{located.node}` ({located.operator}) |"


def session_row(defect: SessionDefect) -> str:
    return f"| {defect.name} | {defect.what} | {checks(defect.caught_by)} |"


def plan_rows() -> list[str]:
    """From the results of the last run on a GPU."""
    rows = []
    for name, test in json.loads(ON_GPU.read_text())["tests"].items():
        if defect := re.search(r"defect_of_a_plan_is_caught\[(.*)\]", name):
            rows.append(f"| {defect[1]} | {test['outcome']} | {checks(tuple(test.get('caught_by', ())))} |")
    return rows


def plans_head() -> str:
    found = json.loads(ON_GPU.read_text())
    gpus = ", ".join(gpu["name"] for gpu in found["machine"]["gpus"])
    return IN_PLANS.format(where=f"{gpus}, {found['date'][:10]}", command=found["command"])


def page_rows() -> list[str]:
    """The lines of the page as it is committed."""
    return PAGE.read_text(encoding="utf-8").splitlines()


def right_ones() -> Iterator[str]:
    """A line for each graph that is right, and written or made otherwise."""
    yield from (f"- {variant.name}: {variant.what}" for variant in VARIANTS)
    yield from (f"- another model: {m.name}, {m.precision.value}, batch {m.batch}" for m in MODELS)
    yield from (f"- the digits Swin by other passes, at opset 17: {name}" for name in PASSES)


def page() -> str:
    """The whole page, from running all of it. Raises AssertionError where a defect is not caught, or not located."""
    from deployed import MAKERS

    with tempfile.TemporaryDirectory() as folder:
        judged = cache(lambda precision: Judged(MAKERS["digits"](Path(folder), precision)))
        rows = []
        for defect in DEFECTS:
            one = judged(defect.precision)
            model = one.graph()
            guilty = defect.plant(model)
            caught, located = failed(one.verdicts(opener(model))), one.locate(model)
            assert caught >= set(defect.caught_by), (defect.name, caught)
            assert located is not None, defect.name
            assert located.node in guilty, (defect.name, located.node, guilty)
            rows.append(row_of(defect, located))
        opens = opener(judged("fp16").graph())
        for runtime in SESSION_DEFECTS:
            caught = failed(judged("fp16").verdicts(lambda: runtime.wrap(opens()), is_plan=True))  # noqa: B023
            assert caught >= set(runtime.caught_by), (runtime.name, caught)
    tables = (HEAD, rows), (IN_SESSIONS, map(session_row, SESSION_DEFECTS))
    tables = *tables, (plans_head(), plan_rows()), (RIGHT, right_ones())
    return "".join(head + "\n".join(lines) + "\n" for head, lines in tables)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
