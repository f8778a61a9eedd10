"""What a plan consists of, recorded when it is built: from the loaded engine where it can be loaded, else the log."""

from __future__ import annotations

from collections.abc import Sequence

from trtship.engine.layer_text import Layer, layers_from_json, layers_from_text
from trtship.family import Family
from trtship.gpu import list_gpus
from trtship.spec import Record

LAYERS_FILE = "layers.json"


class PlanLayers(Record, frozen=True):
    """All of `layers.json`: the layers in the order in which they run, and where TensorRT told of them.

    `source` is `engine inspector`, `build log` or, where there are no layers, empty. `reason` says why the inspector
    was not used, or what could not be read.
    """

    source: str
    reason: str
    layers: tuple[Layer, ...]


def layers_of(plan: bytes, *, family: Family, said: Sequence[str], tf32: bool, profiles: int = 1) -> PlanLayers:
    """The layers of a plan that was just built; `said` is what `recording_layers` heard meanwhile,
    `profiles` how many optimization profiles it has.

    Never raises for a plan whose layers cannot be told: the plan is as good as before.
    """
    reasons = []
    if list_gpus():
        try:
            loaded = family.load(plan, tf32=tf32)
            try:
                layers = layers_from_json(loaded.layer_information(), profiles=profiles)
            finally:
                loaded.close()
            if layers:
                return PlanLayers(source="engine inspector", reason="", layers=layers)
            reasons.append("the engine inspector lists no layers")
        except Exception as error:  # whatever TensorRT, or this version's JSON, makes of it
            reasons.append(f"the plan could not be inspected here: {(str(error) or repr(error)).splitlines()[0]}")
    else:
        reasons.append("no GPU to load the plan on and inspect it")
    layers, unread = layers_from_text(said[-1] if said else "", profiles=profiles)
    if unread:
        reasons.append(f"{unread} entries of TensorRT's log could not be read")
    if not layers:
        reasons.append("TensorRT's log lists no layers")
    return PlanLayers(source="build log" if layers else "", reason="; ".join(reasons), layers=layers)
