"""Run an ONNX graph through onnxruntime, on the CPU or a CUDA GPU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from trtship.errors import DeviceError, GpuFaultError, GpuMemoryError, GraphError, TrtshipError
from trtship.needs import need
from trtship.session.base import Array, Session, is_torch
from trtship.session.cores import bounded_cores
from trtship.session.cuda import STICKY
from trtship.spec import TensorSpec

Providers = Literal["cpu", "cuda", "auto"]

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
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
        levels = ort.GraphOptimizationLevel
        level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        places: list[list[Any]] = [[CPU]]
        if _wants_cuda(ort, providers):
            places.insert(0, [(CUDA, _cuda_options(device, memory_limit)), CPU])
        # Seen with 1.32: its LayerNormFusion makes a graph of mixed types that it then refuses itself.
        ways = [(place, at) for place in places for at in (level, levels.ORT_DISABLE_ALL)]
        self._session, problem = _open(ort, graph, ways, threads)
        if self._session is None:
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
        self.inputs = tuple(_spec_of(value) for value in self._session.get_inputs())
        self.outputs = tuple(_spec_of(value) for value in self._session.get_outputs())

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            if any(is_torch(array) for array in feeds.values()):
                return self._run_torch(feeds)
            names = [spec.name for spec in self.outputs]
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
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
        tensors = {name: tensor.detach().contiguous() for name, tensor in feeds.items()}
        binding = self._session.io_binding()
        for spec in self.inputs:
            tensor = tensors[spec.name]
            kind = ONNX_TYPES[spec.dtype]
            binding.bind_input(spec.name, device.type, index, kind, list(tensor.shape), tensor.data_ptr())
        for spec in self.outputs:
            binding.bind_output(spec.name, device.type, index)
        if device.type == "cuda":
            # onnxruntime works on a stream of its own, and waits for that one before it returns.
            torch.cuda.current_stream(device).synchronize()
        self._session.run_with_iobinding(binding)
        outputs = binding.get_outputs()
        return {spec.name: torch.from_dlpack(value) for spec, value in zip(self.outputs, outputs, strict=True)}

    def _release(self) -> None:
        self._session = None


def _open(
    ort: Any, graph: Path | str | bytes, ways: list[tuple[list[Any], Any]], threads: int | None
) -> tuple[Any, Exception | None]:
    """The session by the first of `ways` (providers, level of optimization) that works, None where none does, and why
    the first one did not. Raises GpuMemoryError and GpuFaultError: what the GPU has no room for, or failed in for good,
    is not taken to the CPU."""
    problem: Exception | None = None
    for providers, level in ways:
        options = ort.SessionOptions()
        options.log_severity_level = SILENT
        options.graph_optimization_level = level
        options.intra_op_num_threads = threads or bounded_cores() or 0  # 0: onnxruntime chooses
        source = graph if isinstance(graph, bytes) else str(graph)
        try:  # its own fallback takes to the CPU whatever fails, and prints that on stdout
            return ort.InferenceSession(source, options, providers=providers, enable_fallback=0), problem
        except Exception as error:
            if providers != [CPU]:
                _check_gpu(error)
            problem = problem or error
    return None, problem


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
