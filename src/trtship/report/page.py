"""A bundle's page, from its evidence alone: the same bundle gives the same bytes."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from trtship.bundle.bundle import Bundle
from trtship.report.evidence import Evidence
from trtship.report.words import FAMILIES, short_source
from trtship.spec import Precision, batch_range

if TYPE_CHECKING:
    from jinja2 import Template


def render(bundle: Bundle) -> str:
    """All of `report.html`. Raises BundleCorruptError, SpecError."""
    return _template().render(_content(Evidence.read(bundle)))


@cache
def _template() -> Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trtship.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


def _content(evidence: Evidence) -> dict[str, Any]:
    from trtship.report import figures, pareto, pipeline, summary, verdicts

    m = evidence.manifest
    shown, left = verdicts.bounded(m.verdicts)
    usual = batch_range(m.inputs, m.ranges).opt
    name = f"{m.name}.trtship"
    candidates, batch = None, None
    if evidence.choice is not None:
        candidates, batch = pareto.of_choice(evidence.choice, usual=usual)
    elif evidence.bench is not None:
        candidates, batch = pareto.of_bench(evidence.bench, usual=usual)
    low = m.precision.graph_dtype != Precision.FP32.graph_dtype
    subject = f"graph {m.precision.value}"
    layers = None
    if evidence.errors is not None and not evidence.errors.reason:
        layers = figures.by_layer(evidence.errors, m.bounds.get(subject), subject=f"the {subject}")
    return {
        "m": m,
        "file": name,
        "source": short_source(m.source.source),
        "family": f"{FAMILIES.get(m.family, m.family)} {m.family_version}",
        "created": f"{datetime.fromisoformat(m.created):%-d %B %Y, %H:%M} UTC",
        "verdicts_left": left,
        "outcome": verdicts.outcome_of(m.verdicts),
        "tried": m.tried,
        "invented": [one for one in m.tried if one.invented],
        "failures": verdicts.failures_of(shown),
        "accuracy": summary.accuracy(evidence),
        "speed": summary.speed(evidence),
        "left_out": verdicts.left_out(evidence, name, shown),
        "checks": verdicts.checks_by_subject(shown),
        "bounds": verdicts.bounds_of(shown),
        "choice": evidence.choice,
        "candidates": candidates,
        "batch": batch,
        "bench": evidence.bench,
        "throughput": None if evidence.bench is None else figures.throughput(evidence.bench),
        "low": low,
        "errors": evidence.errors,
        "layers": layers,
        "stages": pipeline.stages_of(evidence),
        "provenance": pipeline.provenance(evidence),
    }
