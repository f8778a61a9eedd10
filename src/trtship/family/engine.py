"""A loaded plan: what goes in, what comes out, and one execution context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtship.errors import DeviceError, InputError
from trtship.family.tf32 import environment
from trtship.spec import ShapeRange, TensorSpec

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}


class Engine:
    """Wraps `ICudaEngine` and one `IExecutionContext`. Keep it away from other threads, or lock around it.

    `inputs` and `outputs` have the plan's own shapes, a dynamic size written as a letter; sizes that the plan does
    not tell apart get a letter each. `profile` maps each input to its (min, opt, max) shapes.
    """

    def __init__(self, module: Any, engine: Any, runtime: Any, *, variables: dict[str, str]) -> None:
        self._module, self._engine, self._runtime, self._variables = module, engine, runtime, variables
        self._context: Any = None
        self._shapes: tuple[Mapping[str, tuple[int, ...]], dict[str, tuple[int, ...]]] = ({}, {})
        self._addresses: dict[str, int] = {}
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        is_input = {n: engine.get_tensor_mode(n) == module.TensorIOMode.INPUT for n in names}
        self.inputs = tuple(self._spec(n) for n in names if is_input[n])
        self.outputs = tuple(self._spec(n) for n in names if not is_input[n])
        self.profile = {
            spec.name: tuple(tuple(int(n) for n in shape) for shape in engine.get_tensor_profile_shape(spec.name, 0))
            for spec in self.inputs
        }

    def _spec(self, name: str) -> TensorSpec:
        letters = iter("BCDEFGHIJKLMNOPQRSTUVW")
        shape = tuple(int(n) if n >= 0 else next(letters) for n in self._engine.get_tensor_shape(name))
        return TensorSpec(name=name, shape=shape, dtype=_DTYPES[self._engine.get_tensor_dtype(name).name])

    def range_of(self, name: str, axis: int) -> ShapeRange:
        """The sizes that the plan takes along an axis of an input."""
        low, opt, high = (shape[axis] for shape in self.profile[name])
        return ShapeRange(min=low, opt=opt, max=high)

    def prepare(self) -> None:
        """Create the execution context. TensorRT for RTX compiles its kernels here: seconds. Raises DeviceError."""
        if self._context is None:
            with environment(self._variables):
                self._context = self._engine.create_execution_context()
            if self._context is None:
                raise DeviceError(
                    "TensorRT could not create an execution context",
                    why="most often the GPU has too little free memory for the plan's activations",
                    do="free GPU memory, or rebuild with a smaller maximum batch",
                )

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Set the input shapes; returns the output shapes. Raises InputError for shapes outside the profile."""
        if shapes == self._shapes[0]:  # to set them again would make TensorRT work out every shape anew
            return self._shapes[1]
        self.prepare()
        self._shapes = ({}, {})
        for name, shape in shapes.items():
            low, _, high = self.profile[name]
            fits = len(shape) == len(low) and all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))
            if not fits or not self._context.set_input_shape(name, shape):
                raise InputError(
                    f"input {name!r} of shape {list(shape)} does not fit the plan",
                    why=f"its profile takes {list(low)} to {list(high)}",
                    do="split the batch, or deploy again with a wider --batch",
                )
        found = {s.name: tuple(int(n) for n in self._context.get_tensor_shape(s.name)) for s in self.outputs}
        self._shapes = (dict(shapes), found)
        return found

    def execute(self, addresses: Mapping[str, int], stream: int) -> None:
        """Enqueue one inference on a CUDA stream; `addresses` are device pointers of every input and output."""
        for name, address in addresses.items():
            if self._addresses.get(name) != address:
                self._context.set_tensor_address(name, address)
                self._addresses[name] = address
        if not self._context.execute_async_v3(stream):
            raise DeviceError("TensorRT refused to run the plan", why="see its log, above all lines with [E]")

    def layer_information(self) -> str:
        """What TensorRT's inspector tells of the plan's layers, as JSON text; names alone unless it was built with
        detailed profiling verbosity."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._module.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Free the context, then the engine, then the runtime."""
        self._context = None
        self._engine = None
        self._runtime = None
