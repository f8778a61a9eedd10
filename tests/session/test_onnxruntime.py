from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch

from trtship.errors import DeviceError, GpuFaultError, GpuMemoryError, GraphError, InputError
from trtship.session import onnxruntime as module
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import TensorSpec

TWO_INPUTS = """
<ir_version: 10, opset_import: ["": 21]>
g (float[B, 3] x, int64[B] n) => (float[B, 3] double, bool[B] same, bfloat16[B, 3] short) {
    double = Add(x, x)
    same = Equal(n, n)
    short = Cast<to = 16>(double)
}
"""


def session_of(text: str, **options: object) -> OnnxRuntimeSession:
    return OnnxRuntimeSession(onnx.parser.parse_model(text).SerializeToString(), **options)  # type: ignore[arg-type]


PLAIN = '<ir_version: 10, opset_import: ["": 21]> g (float[B, 3] x, float[B] y) => (float[B, 3] z) { z = Neg(x) }'
X, Y = np.ones((2, 3), np.float32), np.ones(2, np.float32)


def test_it_says_what_it_takes_and_what_runs() -> None:
    with session_of(TWO_INPUTS) as session:
        assert session.inputs == (
            TensorSpec(name="x", shape=("B", 3)),
            TensorSpec(name="n", shape=("B",), dtype="int64"),
        )
        assert [spec.dtype for spec in session.outputs] == ["float32", "bool", "bfloat16"]
        assert session.runtime.startswith("onnxruntime ")
        assert session.runtime.endswith(", CPU")


def test_numpy_in_numpy_out() -> None:
    with session_of(PLAIN) as session:
        assert np.array_equal(session.infer({"x": X, "y": Y})["z"], -X)


def test_torch_in_torch_out_with_any_layout_and_dtype() -> None:
    x = torch.randn(3, 2, requires_grad=True).t()
    with session_of(TWO_INPUTS) as session:
        result = session.infer({"x": x, "n": torch.arange(2)})
    assert torch.equal(result["double"], 2 * x)
    assert result["same"].dtype == torch.bool
    assert torch.equal(result["short"], (2 * x).bfloat16())


def test_outputs_outlive_the_session_and_the_next_run() -> None:
    session = session_of(PLAIN)
    first = session.infer({"x": torch.ones(2, 3), "y": torch.ones(2)})["z"]
    session.infer({"x": torch.zeros(2, 3), "y": torch.ones(2)})
    session.close()
    del session
    assert torch.equal(first, -torch.ones(2, 3))


def test_a_float16_graph_runs_on_the_cpu() -> None:
    text = '<ir_version: 10, opset_import: ["": 21]> g (float16[B, 4] x) => (float16[B, 4] y) { y = Softmax(x) }'
    with session_of(text) as session:
        result = session.infer({"x": np.zeros((1, 4), np.float16)})
    assert result["y"].dtype == np.float16
    assert np.array_equal(result["y"], np.full((1, 4), 0.25, np.float16))


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"x": X}, "missing: y"),
        ({"x": X, "y": Y, "w": Y}, "unknown: w"),
        ({"x": X.astype(np.float64), "y": Y}, "x is float64"),
        ({"x": X[None], "y": Y}, "takes 2 dimensions"),
        ({"x": X[:, :2], "y": Y}, "dimension 1 is 2 where it takes 3"),
        ({"x": X, "y": np.ones(4, np.float32)}, "B is 4 here and 2 in x"),
        ({"x": torch.ones(2, 3), "y": Y}, "y is a numpy array"),
        ({"x": [[1.0]], "y": Y}, "x is a list"),
    ],
)
def test_feeds_that_do_not_fit_are_refused_with_the_spec(feeds: dict[str, object], message: str) -> None:
    with session_of(PLAIN) as session, pytest.raises(InputError) as caught:
        session.infer(feeds)
    assert message in str(caught.value)
    assert "x: float32 [B, 3]; y: float32 [B]" in caught.value.do


def test_tensors_on_another_device_are_refused_not_copied() -> None:
    with session_of(PLAIN) as session, pytest.raises(InputError, match="copy through the host"):
        session.infer({"x": torch.ones(2, 3, device="meta"), "y": torch.ones(2, device="meta")})


def test_a_closed_session_is_refused() -> None:
    session = session_of(PLAIN)
    session.close()
    session.close()
    with pytest.raises(InputError, match="closed"):
        session.infer({"x": X, "y": Y})


def test_dimensions_without_a_name_are_not_tied_together() -> None:
    with session_of(PLAIN.replace("B", "?")) as session:
        assert session.inputs[0].shape == ("x.0", 3)
        assert session.infer({"x": X, "y": np.ones(5, np.float32)})["z"].shape == (2, 3)


def test_a_text_file_is_no_graph(tmp_path: Path) -> None:
    path = tmp_path / "notes.onnx"
    path.write_text("hello")
    with pytest.raises(GraphError, match=r"cannot load .*notes\.onnx"):
        OnnxRuntimeSession(path)


def test_a_graph_that_fails_on_a_shape_says_on_which() -> None:
    text = """<ir_version: 10, opset_import: ["": 21]> g (float[B, 3] x) => (float[C, D] y) {
        s = Constant<value_ints = [2, 3]>()
        y = Reshape(x, s)
    }"""
    with session_of(text) as session, pytest.raises(GraphError, match=r"x \[3, 3\]") as caught:
        session.infer({"x": np.zeros((3, 3), np.float32)})
    assert "Reshape" in caught.value.why


def test_external_data_beside_the_graph_is_read(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 21]> g (float[2] x) => (float[2] y)
        <float[2] w = {3.0, 4.0}> { y = Mul(x, w) }"""
    graph = onnx.parser.parse_model(text)
    graph.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array([3, 4], np.float32), "w"))
    path = tmp_path / "m.onnx"
    onnx.save(graph, path, save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    with OnnxRuntimeSession(path) as session:
        assert session.infer({"x": np.ones(2, np.float32)})["y"].tolist() == [3, 4]
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(GraphError, match="external data"):
        OnnxRuntimeSession(path)


def test_cuda_is_refused_where_onnxruntime_has_none() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(DeviceError, match="onnxruntime-gpu"):
        session_of(PLAIN, providers="cuda")
    with session_of(PLAIN, providers="auto") as session:
        assert session.device == "cpu"


ARENA = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: /onnxruntime_src/onnxruntime/core/"
    "framework/bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) "
    "Failed to allocate memory for requested buffer of size 8388608000"
)
DRIVER = "CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; expr=cudaMalloc((void**)&p, size);"
CUBLAS = (
    "Exception during initialization: /onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:123 std::string "
    "onnxruntime::CudaErrString CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; expr=cublasCreate(&handle);"
)
CUDNN = "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED ; GPU=0 ; expr=cudnnCreate(&cudnn_handle_);"
LOST = (
    "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=h ; expr=cudaStreamSynchronize(s);"
)
Opened = list[tuple[list[Any], dict[str, Any]]]


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Opened]:
    """An onnxruntime that says that it has CUDA, and runs on the CPU. `failing` is what its CUDA provider says. The
    list fills with the providers, and the other options, of each session that is asked for."""
    import onnxruntime as real

    def stand_in(failing: str = "", running: str = "") -> Opened:
        opened: Opened = []

        class Stand(real.InferenceSession):  # type: ignore[misc]
            def __init__(self, graph: Any, options: Any, providers: list[Any], **others: Any) -> None:
                opened.append((providers, others))
                self.on_cuda = providers != ["CPUExecutionProvider"]
                if self.on_cuda and failing:
                    raise RuntimeError(failing)
                super().__init__(graph, options, providers=["CPUExecutionProvider"])

            def get_providers(self) -> list[str]:
                return (["CUDAExecutionProvider"] if self.on_cuda else []) + ["CPUExecutionProvider"]

            def run(self, *arguments: Any) -> Any:
                if running:
                    raise RuntimeError(running)
                return super().run(*arguments)

        found = SimpleNamespace(
            get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
            InferenceSession=Stand,
            SessionOptions=real.SessionOptions,
            GraphOptimizationLevel=real.GraphOptimizationLevel,
            __version__="0",
        )
        monkeypatch.setattr(module, "need", lambda name, purpose: found)
        return opened

    return stand_in


@pytest.mark.parametrize("providers", ["auto", "cuda"])
def test_the_device_and_the_memory_limit_are_the_cuda_providers(with_cuda: Any, providers: str) -> None:
    opened = with_cuda()
    with session_of(PLAIN, providers=providers, device=3, memory_limit=1.5) as session:
        assert session.device == "cuda"
    bounded = {"gpu_mem_limit": str(3 * 2**19), "arena_extend_strategy": "kSameAsRequested"}
    (asked, others), *rest = opened
    assert asked == [("CUDAExecutionProvider", {"device_id": "3", **bounded}), "CPUExecutionProvider"]
    assert others == {"enable_fallback": 0}
    assert rest == []
    opened.clear()
    session_of(PLAIN, providers=providers).close()
    assert opened[0][0][0] == ("CUDAExecutionProvider", {"device_id": "0"})


@pytest.mark.parametrize("words", [ARENA, DRIVER, CUBLAS, CUDNN])
@pytest.mark.parametrize("providers", ["auto", "cuda"])
def test_what_the_gpu_has_no_memory_for_is_not_taken_to_the_cpu(with_cuda: Any, words: str, providers: str) -> None:
    opened = with_cuda(failing=words)
    with pytest.raises(GpuMemoryError, match="too little memory"):
        session_of(PLAIN, providers=providers, memory_limit=1)
    assert len(opened) == 1


@pytest.mark.parametrize("providers", ["auto", "cuda"])
def test_a_gpu_that_is_lost_is_not_replaced_by_the_cpu(with_cuda: Any, providers: str) -> None:
    opened = with_cuda(failing=LOST)
    with pytest.raises(GpuFaultError, match="no more work") as caught:
        session_of(PLAIN, providers=providers)
    assert "illegal memory access" in caught.value.why
    assert len(opened) == 1
    with_cuda(running=LOST)
    with session_of(PLAIN, providers=providers) as session, pytest.raises(GpuFaultError):
        session.infer({"x": X, "y": Y})


@pytest.mark.parametrize("words", [ARENA, DRIVER, CUBLAS, CUDNN])
def test_memory_that_runs_out_later_is_told_as_such(with_cuda: Any, words: str) -> None:
    with_cuda(running=words)
    with session_of(PLAIN, providers="cuda") as session, pytest.raises(GpuMemoryError):
        session.infer({"x": X, "y": Y})
    with session_of(PLAIN) as session, pytest.raises(GraphError):
        session.infer({"x": X, "y": Y})


def test_a_cuda_provider_that_fails_leaves_the_cpu_where_that_is_allowed(
    with_cuda: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    with_cuda(failing="CUDA failure 35: CUDA driver version is insufficient")
    with session_of(PLAIN, providers="auto") as session:
        assert session.device == "cpu"
        assert np.array_equal(session.infer({"x": X, "y": Y})["z"], -X)
    with pytest.raises(DeviceError, match="driver version is insufficient"):
        session_of(PLAIN, providers="cuda")
    with pytest.raises(GraphError, match="cannot load"):
        OnnxRuntimeSession(b"no graph", providers="auto")
    assert capfd.readouterr().out == ""


def test_tensors_of_another_gpu_are_refused(with_cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with_cuda()
    session = session_of(PLAIN, providers="cuda", device=1)
    monkeypatch.setattr(module, "need", lambda name, purpose: torch)
    tensor = SimpleNamespace(device=torch.device("cuda", 0))
    with session, pytest.raises(InputError, match="cuda:0, and this session runs on cuda:1"):
        session._run_torch({"x": tensor})
