"""A plan at one size, its tensors where the caller has them: for whoever captures and times it, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from trtship.errors import GpuFaultError
from trtship.family import Family
from trtship.family.context import Context
from trtship.family.profiles import narrowest
from trtship.leak import leak
from trtship.session.cuda import Cuda
from trtship.session.device import gpu_at
from trtship.session.kernel_store import KernelStore


class BoundPlan:
    """One context of a plan, of the narrowest profile that takes `shapes` (each input's), as a `TensorRTSession` has it
    for a call of that size, on the first GPU. For one thread at a time. `output_shapes` is what the outputs have then.

    `plan` must be bytes whose hash was checked: deserializing runs code. `tf32` is as the plan was built. `is_settled`
    says that TensorRT compiles no other kernels for it in the background, by which it would become faster later on.

    Raises DependencyError (no cuda-bindings), DeviceError (no GPU, or one that the plan does not fit), GpuMemoryError,
    InputError (shapes that the plan does not take).
    """

    def __init__(
        self,
        plan: bytes,
        family: Family,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        tf32: bool = True,
    ) -> None:
        gpu = gpu_at(0)
        self._cuda = Cuda(0)
        variables = family.environment(tf32=tf32)
        self._kernels = KernelStore(plan, gpu, runtime=str(family), variables=variables)
        self._context: Context | None = None
        with self._cuda.selected():
            self._engine = family.load(plan, tf32=tf32, kernels=self._kernels.load(), owner=self._kernels.owner)
            try:
                profile = narrowest(self._engine.profiles, dict(shapes))
                self.is_settled = self._engine.is_fixed(profile) or not family.is_rtx
                stream = self._cuda.create_stream()
                try:
                    self._context = self._engine.create_context(profile, stream)
                    self._cuda.synchronize(stream)
                finally:
                    self._cuda.destroy_stream(stream)
                self.output_shapes = self._context.set_shapes(shapes)
                self._keep()
            except GpuFaultError:
                leak(self._context, self._engine)
                raise
            except BaseException:
                self._free()
                raise

    def enqueue(self, addresses: Mapping[str, int], stream: int) -> None:
        """Run once on a CUDA stream, not the legacy default one; `addresses` are those of all inputs and outputs on the
        device. It may be captured from the second time on. Raises GpuMemoryError, DeviceError."""
        assert self._context is not None, "it is closed"
        self._context.execute(addresses, stream)

    def close(self) -> None:
        """Once nothing of it runs any more, and every graph of it is destroyed. Raises GpuFaultError, and leaves all as
        it is, where CUDA is lost."""
        with self._cuda.selected():
            try:
                self._cuda.settle()
            except GpuFaultError:
                leak(self._context, self._engine)
                raise
            self._keep()
            self._free()

    def _free(self) -> None:
        if self._context is not None:
            self._context.close()
            self._context = None
        self._engine.close()

    def _keep(self) -> None:
        if self._engine.kernels.discarded:
            self._kernels.forget()
        self._kernels.keep(self._engine.kernels.serialized())
