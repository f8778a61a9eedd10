"""Torch-TensorRT's dynamo front end, with what its performance tuning guide recommends.

https://docs.pytorch.org/TensorRT/user_guide/performance_tuning.html: a model in half precision, compiled with explicit
typing (the default, and the only kind on TensorRT for RTX); optimization level 5; blocks of any size, cut by the global
partitioner; CUDA graphs. Two of its options are about attention. `attn_bias_is_causal` is on by default and replaces an
attention's bias by a causal mask: wrong for all but language models, so it is off. `decompose_attention` is tried both
ways, since either may be faster.

Its CUDA graphs copy inputs and outputs; the same call captured as one graph does not. Both are timed.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

from trtship.bench.peers.base import Peer, Runner, Task, low_copy, low_dtype, on_device, torch_runner
from trtship.needs import need
from trtship.spec import Precision


class TorchTensorRT(Peer):
    name: ClassVar[str] = "torch-tensorrt"
    variants: ClassVar[tuple[str, ...]] = ("", "attention decomposed")

    def runners(self, task: Task) -> Iterator[Runner]:
        import torch

        torch_tensorrt: Any = need("torch_tensorrt", purpose="the peer Torch-TensorRT")
        dtype = low_dtype(task.precision)
        inputs = on_device(task, dtype=dtype)
        module = low_copy(task.module, dtype, device=task.device)
        with torch.inference_mode():
            exported = torch.export.export(module, tuple(inputs.values()))
        compiled = torch_tensorrt.dynamo.compile(
            exported,
            arg_inputs=list(inputs.values()),
            min_block_size=1,
            use_fast_partitioner=False,
            optimization_level=5,
            truncate_double=True,
            attn_bias_is_causal=False,
            decompose_attention=task.variant == "attention decomposed",
            disable_tf32=task.precision is Precision.FP32,
            timing_cache_path=str(task.folder / "timing.cache"),
        )
        name = "Torch-TensorRT" + (f", {task.variant}" if task.variant else "")
        more: dict[str, Any] = {
            "note": _parts(compiled),
            "runtime": f"Torch-TensorRT {torch_tensorrt.__version__}, {_tensorrt()}",
        }
        yield torch_runner(f"{name}, CUDA graph", compiled, inputs, captures=True, **more)
        if task.device == "cuda":  # a switch of the whole process: it stays on from here
            graphs = torch_tensorrt.runtime.enable_cudagraphs(compiled)
            more["close"] = lambda: graphs.__exit__(None, None, None)
            graphed = graphs.__enter__()
            yield torch_runner(f"{name}, its own CUDA graphs", graphed, inputs, captures=False, own_graph=True, **more)


def _parts(compiled: Any) -> str:
    """Into how many parts the model was cut; more than one TensorRT part means PyTorch ran in between."""
    names = [name for name, _ in compiled.named_children()]
    counts = {kind: sum(mark in n for n in names) for kind, mark in (("TensorRT", "_on_acc"), ("PyTorch", "_on_gpu"))}
    return ", ".join(f"{count} {kind} part{'s' * (count != 1)}" for kind, count in counts.items())


def _tensorrt() -> str:
    for package in ("tensorrt_rtx", "tensorrt"):
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    return "TensorRT"
