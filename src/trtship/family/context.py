"""One execution context: the shapes and addresses that are set in it, set again only when they change."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from trtship.errors import DeviceError, GpuMemoryError, InputError
from trtship.family.kernels import Turn
from trtship.family.layer_times import LayerTimes, profiler_of
from trtship.family.logger import recording

_OUT_OF_MEMORY = re.compile(
    r"out of ?memory|memory allocation|alloc\w* fail|fail\w* to alloc|not be allocated|bad_alloc", re.IGNORECASE
)


class Context:
    """Wraps an `IExecutionContext` whose optimization profile is chosen. For one thread at a time.

    `size` is the bytes of GPU memory that its activations take. `turn` is what the engine's contexts share.
    """

    def __init__(self, module: Any, context: Any, outputs: tuple[str, ...], *, size: int, turn: Turn) -> None:
        self._module, self._context, self._outputs, self.size = module, context, outputs, size
        self._shapes: tuple[Mapping[str, tuple[int, ...]], dict[str, tuple[int, ...]]] = ({}, {})
        self._addresses: dict[str, int] = {}
        self._turn = turn

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Set the input shapes; returns the output shapes. Raises InputError for shapes that TensorRT refuses."""
        if shapes == self._shapes[0]:  # to set them again would make TensorRT work out every shape anew
            return self._shapes[1]
        self._shapes = ({}, {})
        with self._turn:
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

    def close(self) -> None:
        """Free it; nothing of it runs any more."""
        with self._turn:
            self._context = None

    def largest_output(self, name: str) -> int:
        """Bytes that an output may take at any shape of the profile; 0 where TensorRT does not tell."""
        return max(0, int(self._context.get_max_output_size(name)))

    def record_layers(self) -> LayerTimes:
        """The times of each layer at every run from now on. TensorRT waits for every layer then, so that a run takes
        longer than the sum, and cannot be captured in a CUDA graph."""
        times = LayerTimes()
        self._context.profiler = self._profiler = profiler_of(self._module, times)  # TensorRT keeps no reference to it
        return times

    def execute(self, addresses: Mapping[str, int], stream: int) -> None:
        """Enqueue one inference on a CUDA stream; `addresses` are device pointers of every input and output. Raises
        GpuMemoryError, DeviceError."""
        with self._turn, recording(self._module) as log:
            for name, address in addresses.items():
                if self._addresses.get(name) != address:
                    self._context.set_tensor_address(name, address)
                    self._addresses[name] = address
            ran = self._context.execute_async_v3(stream)
        if not ran:
            raise refused("TensorRT refused to run the plan", log)


def refused(what: str, log: Sequence[str]) -> DeviceError:
    """What TensorRT's log tells of a call that failed; GpuMemoryError where it tells of memory."""
    reasons = [line[4:] for line in log if line.startswith(("[E]", "[F]"))]
    if any(_OUT_OF_MEMORY.search(reason) for reason in reasons):
        why = next(reason for reason in reasons if _OUT_OF_MEMORY.search(reason))
        return GpuMemoryError(what, why=why, do="free GPU memory, or run smaller batches")
    return DeviceError(
        what,
        why=reasons[-1] if reasons else "it gave no reason; most often the GPU has too little free memory",
        do="free GPU memory, or rebuild with a smaller maximum batch",
    )
