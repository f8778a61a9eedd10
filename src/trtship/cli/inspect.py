"""`trtship inspect`: what is in a bundle, how it was made, every verdict."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trtship.cli.options import add_trust

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trtship.bundle import Bundle
    from trtship.cli.console import Console
    from trtship.input_values import TriedInput

HELP = "show what is in a bundle, how it was made, and every verdict"
EXAMPLE = "trtship inspect swin.trtship"
MISSING = "not recorded"
MAX_FILES_SHOWN = 500
"""Rows of the table of files; a bundle has about 30."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="show instead which kernels the plan runs, and which attention blocks got a fused one",
    )
    parser.add_argument("--batch", metavar="N", help="with --kernels: of which batch size (default: --batch's OPT)")
    add_trust(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    from trtship.bundle.signature import open_trusted
    from trtship.cli.options import positive, trust
    from trtship.errors import SpecError

    bundle = open_trusted(arguments.bundle, trust(arguments), progress=console.progress)
    if arguments.kernels:
        return _kernels(bundle, None if arguments.batch is None else positive(arguments.batch, "--batch"), console)
    if arguments.batch is not None:
        raise SpecError("--batch tells of which size --kernels are", why="--kernels was not given", do="add --kernels")
    stages = ("export", "simplify", "optimize", "precision", "build")
    evidence = {stage: bundle.evidence(stage) for stage in stages}
    if candidates := bundle.evidence("candidates"):
        evidence["candidates"] = candidates
    console.result({"manifest": bundle.manifest, "evidence": evidence})
    if not console.json:
        _show(bundle, console)
    return 0


def _kernels(bundle: Bundle, batch: int | None, console: Console) -> int:
    from trtship.bundle.kernels import bundle_kernels
    from trtship.cli.kernels import show_kernels

    report = bundle_kernels(bundle, batch=batch)
    console.result({"kernels": report})
    if not console.json:
        show_kernels(report, console)
    return 0


def _files(bundle: Bundle) -> list[tuple[str, str, str]]:
    """A row for each file, `MAX_FILES_SHOWN` at most."""
    files = list(bundle.manifest.files.items())
    shown = [(n, f"{bundle.path(n).stat().st_size / 2**20:.2f}", d[:16]) for n, d in files[:MAX_FILES_SHOWN]]
    left = len(files) - len(shown)
    return [*shown, (f"and {left} more", "", "")] if left else shown


def _inputs_tried(inputs: Sequence[TriedInput]) -> list[tuple[str, str]]:
    """A row for each input: the values that the checks ran on."""
    rows = [f"{one.name}: {one.values}" + (" (INVENTED by trtship)" if one.invented else "") for one in inputs]
    return [("" if place else "checked on", row) for place, row in enumerate(rows)]


def _show(bundle: Bundle, console: Console) -> None:
    from trtship.bundle.candidates import choice_of
    from trtship.cli.tables import table, verdict_table
    from trtship.spec import to_json

    m = bundle.manifest
    export, simplify, precision, build = (bundle.evidence(s) for s in ("export", "simplify", "precision", "build"))
    optimize = bundle.evidence("optimize")
    gpus = ", ".join(g.name for g in m.machine.gpus) or "no GPU"
    targets = ", ".join(build.get("targets", ())) or "all that the family supports"
    exported = export.get("export", {})
    thawed = exported.get("thawed", ())
    classes = bundle.labels
    rows = [
        ("name", m.name),
        ("made", f"{m.created} on {m.machine.platform}, {gpus}"),
        ("source", f"{m.source.source}, weights: {m.source.weights}"),
        *[("", note) for note in m.source.notes],
        ("inputs", "; ".join(map(str, m.plan_inputs))),
        ("outputs", "; ".join(map(str, m.plan_outputs))),
        ("sizes", ", ".join(f"{letter} = {r}" for letter, r in m.ranges.items()) or "fixed"),
        *[("rule", f"only where {rule}; other sizes are refused at run time") for rule in m.rules],
        ("labels", f"{len(classes)}: {', '.join(classes[:5])}{', ...' * (len(classes) > 5)}" if classes else "none"),
        ("preprocessing", to_json(m.preprocess, indent=-1).decode().strip() if m.preprocess else "none"),
        ("export", f"{exported['exporter']}, opset {exported['opset']}" if exported else MISSING),
        *([("", f"fell back: {exported['fell_back']}")] if exported.get("fell_back") else []),
        *([("", f"frozen batch made dynamic in {', '.join(thawed)}")] if thawed else []),
        (
            "simplify",
            f"kept the {simplify['kept']} graph, {simplify['nodes_before']} -> {simplify['nodes_after']} nodes"
            if simplify
            else MISSING,
        ),
        *([("", simplify["why"])] if simplify.get("why") else []),
        ("optimize", optimize.get("summary", "no pass was run")),
        *[
            ("", f"{one['name']} was rolled back: {one['why']}")
            for one in optimize.get("passes", ())
            if one["rolled_back"]
        ],
        ("precision", f"{m.precision.value}; nodes kept in fp32: {sum(precision.get('kept', {}).values())}"),
        (
            "plan",
            f"{m.family} {m.family_version}"
            + (f", {build['plan_mib']} MiB, for {targets}, built in {build['seconds']} s" if build else ""),
        ),
        *_inputs_tried(m.tried),
        ("signature", "there is one; --verify-key tells whose" if bundle.is_signed else "none"),
        ("versions", ", ".join(f"{name} {version}" for name, version in m.versions.items())),
    ]
    console.print(table(("", ""), rows))
    console.print(table(("file", "MiB", "SHA-256"), _files(bundle)))
    console.print(verdict_table(m.verdicts))
    if (choice := choice_of(bundle)) is not None:
        from trtship.cli.candidates import show_choice

        show_choice(choice, console)
