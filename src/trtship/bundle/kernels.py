"""Which kernels a bundle's own plan runs, from what was recorded when it was built."""

from __future__ import annotations

from trtship.bundle.bundle import Bundle
from trtship.engine import LAYERS_FILE, KernelReport, PlanLayers, kernels_of
from trtship.errors import BundleError
from trtship.spec import from_json


def bundle_kernels(bundle: Bundle) -> KernelReport:
    """The plan's layers, joined with the graph that it was built from.

    Raises BundleError where the layers were not recorded, DependencyError where onnx is not installed.
    """
    name = f"evidence/{LAYERS_FILE}"
    if name not in bundle.manifest.files:
        raise BundleError(
            f"{bundle.folder} does not tell its plan's kernels",
            why=f"it has no {name}: it was made by a trtship that did not record them yet",
            do="deploy the model again, to a new folder (-o)",
        )
    layers = from_json(bundle.read(name), PlanLayers, what=str(bundle.folder / name))
    return kernels_of(bundle.path(bundle.manifest.precision_graph), layers)
