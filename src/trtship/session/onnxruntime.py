"""Run an ONNX graph through onnxruntime, on the CPU or a CUDA GPU."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from trtship.errors import DeviceError, GpuFaultError, GpuMemoryError, GraphError, TrtshipError
from trtship.needs import need
from trtship.session.base import Array, Session, is_torch
from trtship.session.cores import bounded_cores
from trtship.session.cuda import STICKY
from trtship.session.trial import Trials, Way, without_crash
from trtship.spec import TensorSpec

Providers = Literal["cpu", "cuda", "auto"]

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
ENABLE_ALL, DISABLE_ALL = "ORT_ENABLE_ALL", "ORT_DISABLE_ALL"
SILENT = 4
"""Log severity: only what is fatal. Every error is raised as well, and the command line prints it once."""

_OUT_OF_MEMORY = re.compile(
    r"out of memory|fail\w* to allocate memory|is smaller than requested bytes|CUDA failure 2\b|STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
"""onnxruntime's words, those of its arena, of CUDA, and of cuBLAS and cuDNN, which a full GPU keeps from starting."""
_CUDA_FAILURE = re.compile(r"CUDA failure (\d+)\b")

# Values of onnx.TensorProto.DataType, so that binding a torch tensor needs neither onnx nor a numpy twin of its dtype.
ONNX_TYPES = {
    "float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7,
    "bool": 9, "float16": 10, "float64": 11, "bfloat16": 16,
}  # fmt: skip
DTYPE_OF = {"float": "float32", "double": "float64"}


class OnnxRuntimeSession(Session):
    """An ONNX file (its external data beside it), or the bytes of one.

    `providers` is where it runs: `"cpu"`; `"cuda"`, which raises DeviceError where onnxruntime cannot use CUDA;
    `"auto"`, CUDA where that works. On CUDA it runs on GPU `device`, and its arena (weights, activations, scratch)
    takes at most `memory_limit` MiB there; what CUDA takes for itself comes on top. `threads` bounds the CPU threads of
    one operator (default: as many as the process may use, by `bounded_cores`; onnxruntime's own choice where nothing
    bounds it). `optimize=False` runs the graph node by node as it is written, without onnxruntime's fusions; a graph
    that those fusions break is run so in any case.

    Raises GraphError when onnxruntime refuses the graph, when it loads or while it runs, GpuMemoryError where the GPU's
    memory has no room for it, GpuFaultError where the GPU has failed for good.
    """

    def __init__(
        self,
        graph: Path | str | bytes,
        *,
        providers: Providers = "cpu",
        device: int = 0,
        memory_limit: float | None = None,
        threads: int | None = None,
        optimize: bool = True,
        name: str = "",
    ) -> None:
        ort = need("onnxruntime", purpose="running an ONNX graph")
        self._name = name or ("the graph" if isinstance(graph, bytes) else str(graph))
        self._gpu = device
        level = ENABLE_ALL if optimize else DISABLE_ALL
        places: list[tuple[Any, ...]] = [(CPU,)]
        if _wants_cuda(ort, providers):
            places.insert(0, ((CUDA, _cuda_options(device, memory_limit)), CPU))
        # Seen with 1.32: its LayerNormFusion makes a graph of mixed types that it then refuses itself.
        ways = [Way(place, at) for place in places for at in dict.fromkeys((level, DISABLE_ALL))]
        self._session, way, problem = self._open(ort, graph, ways, threads)
        if self._session is None:
            if isinstance(problem, TrtshipError):
                raise problem
            raise GraphError(
                f"onnxruntime cannot load {self._name}",
                why=_reason(problem),
                do="check that it is an ONNX file, and that its external data is beside it",
            ) from problem
        self.device = "cuda" if CUDA in self._session.get_providers() else "cpu"
        if providers == "cuda" and self.device == "cpu":
            missing = "its CUDA provider did not start: the GPU, or a CUDA library that it needs, is missing"
            raise _no_cuda(f"its CUDA provider failed: {_reason(problem)}" if problem else missing)
        self.runtime = f"onnxruntime {ort.__version__}, {self.device.upper()}"
        if isinstance(problem, TrtshipError):  # a crash, in a process of its own
            how = f"its {way.without[0]}" if way.without else "its optimizations"
            self.runtime += f", without {how}, which crashes on this graph"
        self.inputs = tuple(_spec_of(value) for value in self._session.get_inputs())
        self.outputs = tuple(_spec_of(value) for value in self._session.get_outputs())

    def _open(
        self, ort: Any, graph: Path | str | bytes, ways: list[Way], threads: int | None
    ) -> tuple[Any, Way, Exception | None]:
        """The session by the first of `ways` that works, None where none does; that way; and why the first one did not.
        A graph that may crash onnxruntime is opened in a process of its own first.

        Raises GpuMemoryError and GpuFaultError: what the GPU has no room for, or failed in for good, is not taken to
        the CPU.
        """
        problem: Exception | None = None
        trials = None
        if ways[0].level != DISABLE_ALL:  # all known crashes are in the optimizations
            trials = _trials(ort, graph, self._name)
            if trials is not None:
                ways = without_crash(ways)
        for way in ways:
            if trials is not None and (crash := trials.crash(way)):
                problem = problem or crashed(self._name, crash)
                continue
            if way.without and not isinstance(problem, TrtshipError):
                continue  # with all of its optimizations, it did not crash
            options = ort.SessionOptions()
            options.log_severity_level = SILENT
            options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, way.level)
            options.intra_op_num_threads = threads or bounded_cores() or 0  # 0: onnxruntime chooses
            try:  # its own fallback takes to the CPU whatever fails, and prints that on stdout
                with utf8_path(graph) as source:
                    session = ort.InferenceSession(
                        source,
                        options,
                        providers=list(way.providers),
                        enable_fallback=0,
                        **({"disabled_optimizers": list(way.without)} if way.without else {}),
                    )
                return session, way, problem
            except Exception as error:
                if way.providers != (CPU,):
                    _check_gpu(error)
                problem = problem or error
        return None, ways[-1], problem

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        session = self._opened()
        try:
            if any(is_torch(array) for array in feeds.values()):
                return self._run_torch(feeds)
            names = [spec.name for spec in self.outputs]
            return dict(zip(names, session.run(names, dict(feeds)), strict=True))
        except TrtshipError:
            raise
        except Exception as error:
            if self.device == "cuda":
                _check_gpu(error)
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise GraphError(
                f"{self._name} failed while it ran on {shapes}",
                why=_reason(error),
                do="check whether the model takes these sizes, or export it again",
            ) from error

    def _opened(self) -> Any:
        """onnxruntime's session. Raises InputError where `close` came meanwhile."""
        session = self._session
        if session is None:
            raise self._unusable()
        return session

    def _run_torch(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Bind the tensors where they lie, and take the outputs over by DLPack: no copy on either side."""
        torch = need("torch", purpose="running torch tensors")
        device = next(iter(feeds.values())).device
        if device.type not in ("cpu", self.device):
            raise self._refusal(
                f"the tensors are on {device}, and this session runs on the {self.device.upper()}",
                "moving them would copy through the host: call .cpu() on them yourself",
            )
        index = device.index or 0
        if device.type == "cuda" and index != self._gpu:
            raise self._refusal(
                f"the tensors are on cuda:{index}, and this session runs on cuda:{self._gpu}",
                "moving them would cost a copy that you did not ask for",
            )
        tensors = {name: tensor.detach().resolve_neg().contiguous() for name, tensor in feeds.items()}
        session = self._opened()
        binding = session.io_binding()
        for spec in self.inputs:
            tensor = tensors[spec.name]
            kind = ONNX_TYPES[spec.dtype]
            binding.bind_input(spec.name, device.type, index, kind, list(tensor.shape), tensor.data_ptr())
        for spec in self.outputs:
            binding.bind_output(spec.name, device.type, index)
        if device.type == "cuda":
            # onnxruntime works on a stream of its own, and waits for that one before it returns.
            torch.cuda.current_stream(device).synchronize()
        session.run_with_iobinding(binding)
        outputs = binding.get_outputs()
        return {spec.name: torch.from_dlpack(value) for spec, value in zip(self.outputs, outputs, strict=True)}

    def _release(self) -> None:
        self._session = None


@contextmanager
def utf8_path(graph: Path | str | bytes) -> Iterator[str | bytes]:
    """The graph as onnxruntime takes it, which opens no path that is not UTF-8: such a folder is named by way of an
    open descriptor. A file whose own name is not UTF-8 is refused by onnxruntime."""
    if isinstance(graph, bytes) or is_utf8(str(graph)):
        yield graph if isinstance(graph, bytes) else str(graph)
        return
    path = Path(graph)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def is_utf8(text: str) -> bool:
    """Whether a text has no bytes of a file name that are not UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _trials(ort: Any, graph: Path | str | bytes, name: str) -> Trials | None:
    """Of a graph that needs them; None for others, and for what cannot be read."""
    with suppress(OSError):
        trials = Trials(graph, name=name, version=ort.__version__)
        return trials if trials.needed else None
    return None


def crashed(name: str, crash: str) -> GraphError:
    """The error of a graph that onnxruntime crashes on, in whichever way it is opened."""
    return GraphError(
        f"onnxruntime cannot run {name}",
        why=crash,
        do="install another version of onnxruntime, deploy with another --precision, or run the plan on a GPU",
    )


def _check_gpu(error: Exception) -> None:
    """Raises GpuMemoryError for an error of the CUDA provider that tells of memory, GpuFaultError for one after which
    CUDA does nothing more for the process."""
    if any(int(number) in STICKY for number in _CUDA_FAILURE.findall(str(error))):
        raise GpuFaultError(
            "the GPU does no more work for this process",
            why=_reason(error),
            do="start the process again; compute-sanitizer finds the kernel that did it",
        ) from error
    if _OUT_OF_MEMORY.search(str(error)):
        raise GpuMemoryError(
            "onnxruntime found too little memory on the GPU",
            why=_reason(error),
            do="free GPU memory, allow more of it (memory_limit), or run smaller batches",
        ) from error


def _wants_cuda(ort: Any, providers: Providers) -> bool:
    has_cuda = CUDA in ort.get_available_providers()
    if providers == "cuda" and not has_cuda:
        raise _no_cuda("the onnxruntime that is installed was built without it")
    return has_cuda and providers != "cpu"


def _cuda_options(device: int, memory_limit: float | None) -> dict[str, str]:
    """https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#configuration-options"""
    options = {"device_id": str(device)}
    if memory_limit is None:
        return options
    # the arena would grow by powers of two
    return {**options, "gpu_mem_limit": str(int(memory_limit * 2**20)), "arena_extend_strategy": "kSameAsRequested"}


def _no_cuda(why: str) -> DeviceError:
    return DeviceError("onnxruntime cannot use CUDA here", why=why, do="pip install onnxruntime-gpu, or use the CPU")


def _spec_of(value: Any) -> TensorSpec:
    """A nameless dynamic dimension gets a name of its own, so that it is tied to no other."""
    kind = re.sub(r"^tensor\((.*)\)$", r"\1", value.type)
    shape = tuple(f"{value.name}.{axis}" if size is None else size for axis, size in enumerate(value.shape))
    return TensorSpec(name=value.name, shape=shape, dtype=DTYPE_OF.get(kind, kind))


def _reason(error: Exception | None) -> str:
    """onnxruntime's message without its error code and source locations."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip())
    text = re.sub(r"\S*onnxruntime/\S+:\d+ (?:[^\n]*\) )?", "", text)
    return text.splitlines()[0][:500] if text else type(error).__name__
