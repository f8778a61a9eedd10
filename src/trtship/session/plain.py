"""Run a TensorRT plan one call at a time: numpy through device buffers of our own, torch CUDA tensors in place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from trtship.family import Engine, Family
from trtship.family.context import Context
from trtship.family.profiles import narrowest
from trtship.gpu import Gpu
from trtship.needs import need
from trtship.session.arrays import Array, Kind, kind_of
from trtship.session.base import Session, is_torch
from trtship.session.call import Call
from trtship.session.cuda import Cuda
from trtship.session.device import gpu_at
from trtship.session.kernel_store import KernelStore
from trtship.spec import TensorSpec

HostArray = np.ndarray[Any, Any]


class PlainTensorRTSession(Session):
    """A plan, loaded on one GPU: a context for each of its profiles in use, no CUDA graphs, calls from several threads
    take turns. What verifies and times plans runs them in this way; `TensorRTSession` is the one for speed.

    `plan` must be bytes whose hash was checked: deserializing runs code; `digest` is that SHA-256, where it is known.
    `outputs` and `inputs` may be given to name the dynamic sizes as the model does; otherwise the plan's own shapes
    stand. `tf32` is as the plan was built. Kernels that are compiled on the way are kept in `kernels` for the next
    process.

    Raises DependencyError (no cuda-bindings), DeviceError (no GPU, or one that the plan does not fit).
    """

    can_poison = True

    def __init__(
        self,
        plan: bytes,
        family: Family,
        *,
        device: int = 0,
        tf32: bool = True,
        inputs: tuple[TensorSpec, ...] | None = None,
        outputs: tuple[TensorSpec, ...] | None = None,
        digest: str | None = None,
        gpu: Gpu | None = None,
    ) -> None:
        gpu = gpu or gpu_at(device)
        self._cuda = Cuda(device)
        variables = family.environment(tf32=tf32)
        self.kernels = KernelStore(plan, gpu, runtime=str(family), variables=variables, digest=digest)
        self.device = device
        self.runtime = f"{family} on {gpu.name}"
        self._lock = threading.Lock()
        self._contexts: dict[int, Context] = {}
        self._buffers: dict[str, tuple[int, int]] = {}
        self._torch_stream: Any = None
        with self._cuda.selected():  # what is made here belongs to the GPU that is current
            self._engine: Engine = family.load(plan, tf32=tf32, kernels=self.kernels.load())
            self.inputs = inputs or self._engine.inputs
            self.outputs = outputs or self._engine.outputs
            self.ranges = self._engine.ranges_of(self.inputs)
            self._stream = self._cuda.create_stream()
            opt = {name: shapes[1] for name, shapes in self._engine.profiles[0].items()}
            self._prepared(opt)  # a plan that this GPU cannot run is told now

    def layer_times(self, feeds: Mapping[str, Array], *, runs: int = 20) -> dict[str, float]:
        """Milliseconds of each layer, the median of `runs`, by its name in the engine inspector; `feeds` as for
        `infer`, on the host. The session is slower from then on: use it for nothing else.

        Raises InputError, DeviceError."""
        self.infer(feeds)
        self.infer(feeds)  # the first run of a size may still meet kernels that are about to be replaced
        with self._cuda.selected():
            times = self._prepared({name: tuple(array.shape) for name, array in feeds.items()}).record_layers()
        for _ in range(runs):
            self.infer(feeds)
        return times.medians

    def _fits(self, call: Call, arrays: list[Array]) -> None:
        if call.on_gpu and not is_torch(arrays[0]):
            raise self._refusal(
                f"the inputs are on the GPU, as {call.kind.name}",
                "this session takes torch tensors there; trtship.load(..., fast=True) takes these as well",
            )
        if call.on_gpu and call.index != self.device:
            raise self._refusal(
                f"the tensors are on cuda:{call.index}, and this session runs on cuda:{self.device}",
                "moving them would cost a copy that you did not ask for",
            )

    def _start(self, call: Call, arrays: list[Array], out: Any) -> Callable[[], dict[str, Array]]:
        if not call.on_gpu:
            return super()._start(call, arrays, out)
        found = self._plainly(call, arrays, out)  # here, since the caller's stream is this thread's
        return lambda: found

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        with self._lock, self._cuda.selected():
            first = next(iter(feeds.values()))
            if is_torch(first) and first.device.type != "cpu":
                return self._run_torch(need("torch", purpose="running torch tensors"), feeds)
            kind = kind_of(first)
            assert kind is not None, "the feeds were checked"
            arrays = self._run_host(kind, {name: kind.host(array) for name, array in feeds.items()})
            return {spec.name: kind.wrap(arrays[spec.name], spec.dtype) for spec in self.outputs}

    def _prepared(self, shapes: dict[str, tuple[int, ...]]) -> Context:
        """The context of the narrowest profile that takes these shapes: the first for a profile takes seconds."""
        profile = narrowest(self._engine.profiles, shapes)
        if profile not in self._contexts:
            self._contexts[profile] = self._engine.create_context(profile, self._stream, eager=False)
            self._cuda.synchronize(self._stream)
            if self._engine.kernels.discarded:
                self.kernels.forget()
            self.kernels.keep(self._engine.kernels.serialized())
        return self._contexts[profile]

    def _run_host(self, kind: Kind, feeds: Mapping[str, HostArray]) -> dict[str, HostArray]:
        shapes = {name: tuple(array.shape) for name, array in feeds.items()}
        context = self._prepared(shapes)
        found = context.set_shapes(shapes)
        sources = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        results = {spec.name: np.empty(found[spec.name], kind.host_dtype(spec.dtype)) for spec in self.outputs}
        addresses = {name: self._buffer(name, array.nbytes) for name, array in {**sources, **results}.items()}
        for name, array in sources.items():
            self._cuda.to_device(addresses[name], array.ctypes.data, array.nbytes, self._stream)
        self._execute(context, addresses, results, self._stream)
        for name, array in results.items():
            self._cuda.to_host(array.ctypes.data, addresses[name], array.nbytes, self._stream)
        self._cuda.synchronize(self._stream)
        return results

    def _run_torch(self, torch: Any, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """On the caller's current stream; on a stream of ours beside it when that is the legacy default stream,
        on which TensorRT would synchronize the whole device."""
        shapes = {name: tuple(tensor.shape) for name, tensor in feeds.items()}
        context = self._prepared(shapes)
        found = context.set_shapes(shapes)
        device = next(iter(feeds.values())).device
        sources = {name: tensor.detach().contiguous() for name, tensor in feeds.items()}
        results = {
            spec.name: torch.empty(found[spec.name], dtype=getattr(torch, spec.dtype), device=device)
            for spec in self.outputs
        }
        addresses = {name: tensor.data_ptr() for name, tensor in {**sources, **results}.items()}
        current = torch.cuda.current_stream(device)
        if current.cuda_stream != 0:
            self._execute(context, addresses, results, current.cuda_stream)
            return results
        if self._torch_stream is None:
            self._torch_stream = torch.cuda.Stream(device)
        self._torch_stream.wait_stream(current)
        self._execute(context, addresses, results, self._torch_stream.cuda_stream)
        for tensor in (*sources.values(), *results.values()):
            tensor.record_stream(self._torch_stream)
        current.wait_stream(self._torch_stream)
        return results

    def _execute(
        self, context: Context, addresses: Mapping[str, int], results: Mapping[str, Array], stream: int
    ) -> None:
        if self.poison:
            for name, array in results.items():
                self._cuda.fill(addresses[name], 0xFF, array.nbytes, stream)
        context.execute(addresses, stream)

    def _buffer(self, name: str, size: int) -> int:
        """Device memory for a tensor, kept and grown as needed; at least one byte, since no address may be null."""
        address, room = self._buffers.get(name, (0, 0))
        if size > room or not address:
            if address:
                self._buffers.pop(name)
                self._cuda.free(address)
            room = max(size, 1)
            address = self._cuda.allocate(room)
            self._buffers[name] = (address, room)
        return address

    def _release(self) -> None:
        with self._cuda.selected():
            self._cuda.synchronize(self._stream)
            if self._torch_stream is not None:
                self._torch_stream.synchronize()
            for address, _ in self._buffers.values():
                self._cuda.free(address)
            self._buffers.clear()
            self.kernels.keep(self._engine.kernels.serialized())  # with those compiled in the background
            self._cuda.destroy_stream(self._stream)
            self._contexts.clear()
            self._engine.close()
