"""Run a PyTorch module as a session: the reference that everything else is measured against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trtship.needs import need
from trtship.session.base import Array, Session, is_torch
from trtship.spec import TensorSpec


class TorchSession(Session):
    """An `nn.Module` in eval mode, without gradients and with TF32 off, on the device where its parameters lie.

    `dtype` is what the module computes in (`"float32"`, `"float64"`, `"float16"` ...): floating inputs are cast to
    it before the module, and outputs back to `outputs`' dtypes after it. The module is converted in place.
    """

    def __init__(
        self,
        module: Any,
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        dtype: str = "float32",
    ) -> None:
        self._torch = torch = need("torch", purpose="running a PyTorch model")
        self._dtype = getattr(torch, dtype)
        self._module = module.eval().to(self._dtype)
        tensor = next(iter(module.parameters()), None)
        self._device = tensor.device if tensor is not None else torch.device("cpu")
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.runtime = f"PyTorch {torch.__version__}, {dtype}, {self._device}"

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        torch = self._torch
        as_torch = is_torch(next(iter(feeds.values())))
        tensors = [feeds[s.name] if as_torch else torch.from_numpy(feeds[s.name]).to(self._device) for s in self.inputs]
        tensors = [t.to(self._dtype) if t.is_floating_point() else t for t in tensors]
        tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        try:
            with torch.inference_mode():
                result = self._module(*tensors)
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
        values = result if isinstance(result, (tuple, list)) else [result]
        outputs = {
            spec.name: value.to(getattr(torch, spec.dtype)) for spec, value in zip(self.outputs, values, strict=True)
        }
        return outputs if as_torch else {name: value.cpu().numpy() for name, value in outputs.items()}

    def _release(self) -> None:
        self._module = None
