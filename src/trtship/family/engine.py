"""A loaded plan: what goes in, what comes out, and the execution contexts that run it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from trtship.family.context import Context, refused
from trtship.family.kernels import Kernels
from trtship.family.logger import recording
from trtship.family.profiles import Profile
from trtship.family.spares import Owner
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

_CONTEXT_SIZE = ("get_device_memory_size_for_profile_v2", "get_device_memory_size_for_profile")
"""The newer name, and that of TensorRT 10.0."""
_STAT, _STATS = "get_engine_stat", "EngineStat"
"""Full TensorRT has them from 10.13 on."""


class Engine:
    """Wraps `ICudaEngine`. Threads share it; contexts are created one at a time, since they need the environment of the
    process as it was when the plan was built.

    Its contexts take turns to be created, to set shapes, to enqueue and to be closed: `turn`, which a thread may take
    twice. TensorRT for RTX promises threads one network each, no more (release notes of 1.3), and two contexts of one
    engine that enqueued at once, while kernels were compiled in the background, ended the process by a segmentation
    fault (1.6.1, H100). Replays of CUDA graphs take no part in it; what runs otherwise waits while a context's kernels
    are compiled.

    `inputs` and `outputs` have the plan's own shapes, a dynamic size written as a letter; sizes that the plan does
    not tell apart get a letter each. `profiles` has what each takes: one that was built for a single size runs faster
    at that size than one for a range. `kernels` are those that TensorRT for RTX compiled for the plan.
    """

    def __init__(
        self,
        module: Any,
        engine: Any,
        runtime: Any,
        *,
        variables: dict[str, str],
        kernels: bytes = b"",
        owner: Owner | None = None,
        plan_size: int = 0,
    ) -> None:
        self._module, self._engine, self._runtime, self._variables = module, engine, runtime, variables
        self._plan_size, self.turn = plan_size, threading.RLock()
        self.kernels = Kernels(module, engine, kernels, turn=self.turn, owner=owner)
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

    def ranges_of(self, inputs: Sequence[TensorSpec]) -> dict[str, ShapeRange]:
        """The sizes that the plan takes for each letter in these specs of its inputs."""
        return {
            size: self.range_of(spec.name, axis)
            for spec in inputs
            for axis, size in enumerate(spec.shape)
            if isinstance(size, str)
        }

    def is_fixed(self, profile: int) -> bool:
        """Whether a profile takes one size only."""
        return all(low == high for low, _, high in self.profiles[profile].values())

    def context_size(self, profile: int) -> int:
        """Bytes of GPU memory that a context for this profile takes for its activations."""
        asked = next(found for name in _CONTEXT_SIZE if (found := getattr(self._engine, name, None)))
        return int(asked(profile))

    @property
    def size(self) -> int:
        """Bytes of its weights on the GPU; that of the plan where TensorRT does not tell."""
        asked, kinds = (getattr(owner, name, None) for owner, name in ((self._engine, _STAT), (self._module, _STATS)))
        found = int(asked(kinds.TOTAL_WEIGHTS_SIZE)) if asked and kinds else 0
        return found if found > 0 else self._plan_size

    def create_context(self, profile: int, stream: int) -> Context:
        """An execution context for a profile, ready when what was enqueued on `stream` is done. TensorRT for RTX
        compiles the kernels here that are not among `kernels`: seconds. Those for a profile of one size are compiled
        for it at once, not in the background. Raises GpuMemoryError, DeviceError.

        A context is for one thread at a time; each has memory of its own.
        """
        module, several = self._module, len(self.profiles) > 1
        strategy = module.ExecutionContextAllocationStrategy.STATIC
        if several:  # else each context would take the memory of the largest profile
            strategy = module.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        chosen, fixed = (profile if several else None), self.is_fixed(profile)
        with environment(self._variables), self.turn, recording(module) as log:
            context = self._context(strategy, chosen, stream, fixed=fixed)
            if context is None:  # an older runtime's kernels, say: the plan itself has all that it needs
                context = self._context(strategy, chosen, stream, fixed=fixed, kept=False)
                if context is not None:
                    self.kernels.discard()
        if context is None:
            raise refused("TensorRT could not create an execution context", log)
        names = tuple(spec.name for spec in self.outputs)
        return Context(module, context, names, size=self.context_size(profile), turn=self.turn)

    def _context(self, strategy: Any, profile: int | None, stream: int, *, fixed: bool, kept: bool = True) -> Any:
        """An `IExecutionContext` with its profile chosen; None where TensorRT could not."""
        context = self.kernels.create_context(strategy, fixed=fixed, kept=kept)
        if context is None or profile is None or context.set_optimization_profile_async(profile, stream):
            return context
        return None

    def layer_information(self) -> str:
        """What TensorRT's inspector tells of the plan's layers, as JSON text; names alone unless it was built with
        detailed profiling verbosity."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._module.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Free the engine, then the runtime, and leave the kernels to the next engine; after its contexts."""
        self.kernels.close()
        self._engine = None
        self._runtime = None
        self.kernels.leave()
