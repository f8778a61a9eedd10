"""Strongly typed graph -> plan -> verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trtship.bundle.subjects import CHECKS
from trtship.cache import Entry
from trtship.deployment.stages.base import GRAPH, PLAN, REPORT, Stages, graph_digests
from trtship.deployment.stages.sizes import profiles_in
from trtship.engine import LAYERS_FILE, plan_apart, sturdy_plan
from trtship.spec import Precision, ShapeRange, TensorSpec, from_json, to_json
from trtship.verify import Verdict


def build(
    stages: Stages, graph: Entry, precision: Precision, inputs: tuple[TensorSpec, ...], ranges: Mapping[str, ShapeRange]
) -> Entry:
    """Strongly typed graph -> plan."""
    single = profiles_in(stages.options, inputs, ranges)

    def make(folder: Path) -> None:
        with stages.progress.stage("build the plan", f"with {stages.family}"):
            plan = sturdy_plan(
                lambda sizes: plan_apart(
                    graph.folder / GRAPH,
                    family=stages.family,
                    inputs=inputs,
                    ranges=ranges,
                    single=sizes,
                    precision=precision,
                    targets=stages.options.targets,
                    progress=stages.progress,
                ),
                single=single,
                asked=stages.options.profiles is not None,
                progress=stages.progress,
            )
        (folder / PLAN).write_bytes(plan.data)
        (folder / "build.log").write_text(plan.log)
        (folder / LAYERS_FILE).write_bytes(to_json(plan.layers))
        (folder / REPORT).write_bytes(to_json(plan.report))

    key = {
        "graph": graph_digests(graph),
        "ranges": {letter: str(r) for letter, r in ranges.items()},
        "profiles": list(single),
        "tf32": precision.tf32,
        **stages.part("family", "targets", "gpu"),
    }
    return stages.run("build", key, make)


def verify(stages: Stages, key: Mapping[str, Any], check: Callable[[], tuple[Verdict, ...]]) -> tuple[Verdict, ...]:
    """The verdicts of this machine."""

    def make(folder: Path) -> None:
        (folder / REPORT).write_bytes(to_json(check()))

    key = {**key, "checks": CHECKS, **stages.part("family", "gpu", "eval", "max_drop", "versions")}
    entry = stages.run("verify", key, make)
    return from_json(entry.read(REPORT), tuple[Verdict, ...], what="the verify stage's report")
