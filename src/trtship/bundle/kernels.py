"""Which kernels a bundle's own plan runs, from what was recorded when it was built."""

from __future__ import annotations

from trtship.bundle.bundle import Bundle
from trtship.bundle.graph_files import private_graphs
from trtship.engine import LAYERS_FILE, KernelReport, PlanLayers, kernels_of
from trtship.engine.profiles import profiles_of
from trtship.errors import BundleError
from trtship.family.profiles import narrowest
from trtship.spec import batch_letter, from_json


def bundle_kernels(bundle: Bundle, *, batch: int | None = None) -> KernelReport:
    """The layers that the plan runs at a batch size (its opt unless given), joined with the graph it was built from.

    Raises BundleError where the layers were not recorded, InputError for a batch that the plan does not take,
    DependencyError where onnx is not installed.
    """
    name = f"evidence/{LAYERS_FILE}"
    if name not in bundle.manifest.files:
        raise BundleError(
            f"{bundle.folder} does not tell its plan's kernels",
            why=f"it has no {name}: it was made by a trtship that did not record them yet",
            do="deploy the model again, to a new folder (-o)",
        )
    layers = from_json(bundle.read(name), PlanLayers, what=str(bundle.folder / name))
    m = bundle.manifest
    sizes = {letter: r.opt for letter, r in m.ranges.items()}
    letter = batch_letter(m.plan_inputs)
    if batch is not None and letter is not None:
        sizes[letter] = batch
    shapes = {spec.name: spec.with_sizes(sizes) for spec in m.plan_inputs}
    profile = narrowest(profiles_of(m.plan_inputs, m.ranges, single=m.profiles), shapes)
    with private_graphs(bundle) as graph:
        return kernels_of(graph(m.precision_graph), layers, profile=profile)
