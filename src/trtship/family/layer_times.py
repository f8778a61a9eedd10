"""How long each layer of a plan takes, as TensorRT's own profiler tells it."""

from __future__ import annotations

import statistics
from typing import Any


class LayerTimes:
    """Milliseconds of each layer, one number a run, by the layer's name as the engine inspector gives it."""

    def __init__(self) -> None:
        self._found: dict[str, list[float]] = {}

    def add(self, layer: str, ms: float) -> None:
        self._found.setdefault(layer, []).append(ms)

    @property
    def medians(self) -> dict[str, float]:
        return {layer: statistics.median(times) for layer, times in self._found.items()}


def profiler_of(module: Any, times: LayerTimes) -> Any:
    """An `IProfiler` of this family that adds to `times`; the family keeps a reference to it, not TensorRT."""

    class Profiler(module.IProfiler):  # type: ignore[misc]  # the module is known when it runs
        def __init__(self) -> None:
            super().__init__()

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.add(layer_name, ms)

    return Profiler()
