"""One execution context: the shapes and addresses that are set in it, set again only when they change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtship.errors import DeviceError, InputError


class Context:
    """Wraps an `IExecutionContext` whose optimization profile is chosen."""

    def __init__(self, context: Any, outputs: tuple[str, ...]) -> None:
        self._context, self._outputs = context, outputs
        self._shapes: tuple[Mapping[str, tuple[int, ...]], dict[str, tuple[int, ...]]] = ({}, {})
        self._addresses: dict[str, int] = {}

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Set the input shapes; returns the output shapes. Raises InputError for shapes that TensorRT refuses."""
        if shapes == self._shapes[0]:  # to set them again would make TensorRT work out every shape anew
            return self._shapes[1]
        self._shapes = ({}, {})
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise InputError(
                    f"TensorRT refused the shape {list(shape)} for input {name!r}",
                    why="its log has the reason, above all lines with [E]",
                    do="deploy again with a wider --batch",
                )
        found = {name: tuple(int(n) for n in self._context.get_tensor_shape(name)) for name in self._outputs}
        self._shapes = (dict(shapes), found)
        return found

    def record(self, profiler: Any) -> None:
        """Tell `profiler`, an `IProfiler`, each layer's time at every run from now on."""
        self._context.profiler = self._profiler = profiler  # TensorRT keeps no reference to it

    def execute(self, addresses: Mapping[str, int], stream: int) -> None:
        """Enqueue one inference on a CUDA stream; `addresses` are device pointers of every input and output."""
        for name, address in addresses.items():
            if self._addresses.get(name) != address:
                self._context.set_tensor_address(name, address)
                self._addresses[name] = address
        if not self._context.execute_async_v3(stream):
            raise DeviceError("TensorRT refused to run the plan", why="see its log, above all lines with [E]")
