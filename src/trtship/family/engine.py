"""A loaded plan: what goes in, what comes out, and an execution context for each of its profiles in use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtship.errors import DeviceError
from trtship.family.context import Context
from trtship.family.kernels import Kernels
from trtship.family.layer_times import LayerTimes, profiler_of
from trtship.family.logger import recording
from trtship.family.profiles import Profile, Shapes
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
    """Wraps `ICudaEngine` and an `IExecutionContext` for each of its optimization profiles that is in use. Keep it away
    from other threads, or lock around it.

    `inputs` and `outputs` have the plan's own shapes, a dynamic size written as a letter; sizes that the plan does
    not tell apart get a letter each. `profiles` has what each takes: one that was built for a single size runs faster
    at that size than one for a range. `kernels` are those that TensorRT for RTX compiled for the plan.
    """

    def __init__(
        self, module: Any, engine: Any, runtime: Any, *, variables: dict[str, str], kernels: bytes = b""
    ) -> None:
        self._module, self._engine, self._runtime, self._variables = module, engine, runtime, variables
        self.kernels = Kernels(module, engine, kernels)
        self._contexts: dict[int, Context] = {}
        self._active: Context | None = None
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        is_input = {n: engine.get_tensor_mode(n) == module.TensorIOMode.INPUT for n in names}
        self.inputs = tuple(self._spec(n) for n in names if is_input[n])
        self.outputs = tuple(self._spec(n) for n in names if not is_input[n])
        self.profiles = tuple(self._profile(index) for index in range(engine.num_optimization_profiles)) or (
            {spec.name: (tuple(map(int, spec.shape)),) * 3 for spec in self.inputs},
        )

    def _spec(self, name: str) -> TensorSpec:
        letters = iter("BCDEFGHIJKLMNOPQRSTUVW")
        shape = tuple(int(n) if n >= 0 else next(letters) for n in self._engine.get_tensor_shape(name))
        return TensorSpec(name=name, shape=shape, dtype=_DTYPES[self._engine.get_tensor_dtype(name).name])

    def _profile(self, index: int) -> Profile:
        shapes = {spec.name: self._engine.get_tensor_profile_shape(spec.name, index) for spec in self.inputs}
        return {name: tuple(tuple(int(n) for n in shape) for shape in three) for name, three in shapes.items()}

    def range_of(self, name: str, axis: int) -> ShapeRange:
        """The sizes that the plan takes along an axis of an input: the smallest and the largest of any profile, and the
        first profile's opt."""
        return ShapeRange(
            min=min(profile[name][0][axis] for profile in self.profiles),
            opt=self.profiles[0][name][1][axis],
            max=max(profile[name][2][axis] for profile in self.profiles),
        )

    def is_prepared(self, profile: int) -> bool:
        return profile in self._contexts

    def prepare(self, profile: int, stream: int) -> None:
        """Create the execution context for a profile. TensorRT for RTX compiles the kernels here that are not among
        `kernels`: seconds. The context is ready when what was enqueued on `stream` is done. Raises DeviceError."""
        if profile in self._contexts:
            return
        module, several = self._module, len(self.profiles) > 1
        strategy = module.ExecutionContextAllocationStrategy.STATIC
        if several:  # else each context would take the memory of the largest profile
            strategy = module.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        with environment(self._variables), recording(module) as log:
            context = self._context(strategy, profile if several else None, stream)
            if context is None:  # an older runtime's kernels, say: the plan itself has all that it needs
                self.kernels.discard()
                context = self._context(strategy, profile if several else None, stream)
        if context is None:
            reasons = [line[4:] for line in log if line.startswith(("[E]", "[F]"))]
            raise DeviceError(
                "TensorRT could not create an execution context",
                why=reasons[-1] if reasons else "it gave no reason; most often the GPU has too little free memory",
                do="free GPU memory, or rebuild with a smaller maximum batch",
            )
        self._contexts[profile] = Context(context, tuple(spec.name for spec in self.outputs))

    def _context(self, strategy: Any, profile: int | None, stream: int) -> Any:
        """An `IExecutionContext` with its profile chosen; None where TensorRT could not."""
        context = self.kernels.create_context(strategy)
        if context is None or profile is None or context.set_optimization_profile_async(profile, stream):
            return context
        return None

    def set_shapes(self, shapes: Shapes, profile: int) -> dict[str, tuple[int, ...]]:
        """Choose a prepared profile and set the input shapes; returns the output shapes. Raises InputError for shapes
        that TensorRT does not take."""
        self._active = self._contexts[profile]
        return self._active.set_shapes(shapes)

    def execute(self, addresses: Mapping[str, int], stream: int) -> None:
        """Enqueue one inference on a CUDA stream; `addresses` are device pointers of every input and output."""
        assert self._active is not None, "shapes are set before the plan is run"
        self._active.execute(addresses, stream)

    def record_layers(self) -> LayerTimes:
        """The times of each layer at every run from now on, of the profile whose shapes are set. TensorRT waits for
        every layer then, so that a run takes longer than the sum."""
        assert self._active is not None, "shapes are set before layers are timed"
        times = LayerTimes()
        self._active.record(profiler_of(self._module, times))
        return times

    def layer_information(self) -> str:
        """What TensorRT's inspector tells of the plan's layers, as JSON text; names alone unless it was built with
        detailed profiling verbosity."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._module.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Free the contexts and their kernels, then the engine, then the runtime."""
        self._active = None
        self._contexts.clear()
        self.kernels.close()
        self._engine = None
        self._runtime = None
