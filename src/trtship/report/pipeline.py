"""How the bundle was made: the stages in their order with their times and what each did, and the versions."""

from __future__ import annotations

from typing import Any

import msgspec
from markupsafe import Markup

from trtship.report.evidence import Evidence, StageTime
from trtship.report.verdicts import outcome_of
from trtship.report.words import FAMILIES, seconds, several, size


class Stage(msgspec.Struct, frozen=True):
    """`time` is empty where it was not recorded."""

    name: str
    time: str
    did: tuple[Markup | str, ...]


def stages_of(evidence: Evidence) -> list[Stage]:
    """Those that the deploy recorded, the runs of one name together (a search builds several plans; what is told is
    then of the one that is shipped); for a bundle that has no such record, those that left a report."""
    tells = {name: tell(evidence) for name, tell in TELLS.items()}
    if not evidence.stages:
        return [Stage(name, "", tuple(did)) for name, did in tells.items() if did]
    groups: dict[str, list[StageTime]] = {}
    for stage in evidence.stages:
        groups.setdefault(stage.name, []).append(stage)
    return [
        Stage(
            name if len(group) == 1 else f"{name} × {len(group)}",
            seconds(sum(one.seconds for one in group)),
            tuple(tells.get(name) or [one.did for one in group if one.did]),
        )
        for name, group in groups.items()
    ]


def _export(evidence: Evidence) -> list[Markup | str]:
    report: dict[str, Any] = evidence.reports["export"].get("export", {})
    if not report:
        return []
    worst = max((check["rel_l2"] for check in report["checks"] if check.get("rel_l2") is not None), default=None)
    found: list[Markup | str] = [f"{report['exporter']} exporter, opset {report['opset']}"]
    if report["checks"]:
        found.append(Markup("off by {} at most, bound {}").format(size(worst), size(report["bound"])))
    if report.get("fell_back"):
        found.append(f"fell back: {report['fell_back']}")
    if report.get("thawed"):
        found.append(f"a frozen batch was made dynamic in {several(len(report['thawed']), 'place')}")
    return found


def _simplify(evidence: Evidence) -> list[Markup | str]:
    report = evidence.reports["simplify"]
    if not report:
        return []
    after = report.get("nodes_after")
    return [f"{report['nodes_before']} → {after if after is not None else '?'} nodes; kept the {report['kept']} graph"]


def _optimize(evidence: Evidence) -> list[Markup | str]:
    report = evidence.reports["optimize"]
    if not report:
        return []
    found: list[Markup | str] = [report["summary"]]
    found += [f"{one['name']} was rolled back: {one['why']}" for one in report["passes"] if one["rolled_back"]]
    return found


def _precision(evidence: Evidence) -> list[Markup | str]:
    report = evidence.reports["precision"]
    if not report:
        return []
    kept = ", ".join(f"{number} {operator}" for operator, number in report.get("kept", {}).items())
    found: list[Markup | str] = [evidence.manifest.precision.value]
    found += [f"in fp32: {kept}"] if kept else []
    found += [f"kept in fp32 as asked: {several(len(report['asked']), 'node')}"] if report.get("asked") else []
    clipped, lost = report.get("clipped", ()), report.get("underflowed", 0)
    found += [f"beyond the type's range: {several(len(clipped), 'constant')}"] if clipped else []
    found += [f"became 0: {several(lost, 'weight')}"] if lost else []
    return found


def _build(evidence: Evidence) -> list[Markup | str]:
    m, report = evidence.manifest, evidence.reports["build"]
    if not report:
        return []
    targets = ", ".join(report.get("targets", ())) or "all GPUs that the family supports"
    return [
        f"{FAMILIES.get(m.family, m.family)} {m.family_version}",
        f"{report['plan_mib']} MiB, {report['layers']} layers, built in {seconds(report['seconds'])}",
        f"for {targets}",
        *([f"on {report['gpu']}"] if report.get("gpu") else ["ahead of time, without a GPU"]),
    ]


def _verify(evidence: Evidence) -> list[Markup | str]:
    return [outcome_of(evidence.manifest.verdicts).sentence.rstrip(".") + ", as they stand now"]


def _layers(evidence: Evidence) -> list[Markup | str]:
    errors = evidence.errors
    if errors is None:
        return []
    return [errors.reason or f"{len(errors.layers)} of {several(errors.tensors, 'tensor')} read out"]


TELLS = {
    "export": _export,
    "simplify": _simplify,
    "optimize": _optimize,
    "precision": _precision,
    "build": _build,
    "verify": _verify,
    "error by layer": _layers,
}
"""What a stage of this name did, as far as the evidence tells."""


def provenance(evidence: Evidence) -> list[tuple[str, list[str]]]:
    """Where the bundle comes from, in pairs of a name and lines."""
    m = evidence.manifest
    gpus = [f"{g.name}, compute capability {g.compute_capability}, driver {g.driver}" for g in m.machine.gpus]
    sizes = [f"{letter} = {r}" for letter, r in m.ranges.items()]
    return [
        ("model", [m.source.source, f"weights: {m.source.weights}", *m.source.notes]),
        ("inputs", [str(spec) for spec in m.plan_inputs]),
        ("outputs", [str(spec) for spec in m.plan_outputs]),
        ("sizes", sizes or ["fixed"]),
        ("preprocessing", _steps(m.preprocess)),
        ("machine", [m.machine.platform, f"Python {m.machine.python}, {m.machine.cpus} CPUs", *(gpus or ["no GPU"])]),
        ("plan", [f"{m.plan}, SHA-256 {m.files[m.plan]}"]),
    ]


def _steps(preprocess: Any) -> list[str]:
    if preprocess is None:
        return ["none: the source did not tell how pictures become inputs"]
    plain = msgspec.to_builtins(preprocess)
    steps = [
        f"{step['op']} " + ", ".join(f"{k} {_plain(v)}" for k, v in step.items() if k != "op" and v is not None)
        for step in plain["steps"]
    ]
    return [f"mode {plain['mode']}", *steps]


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value)
