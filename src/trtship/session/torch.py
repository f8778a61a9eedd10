"""Run a PyTorch module as a session: the reference that everything else is measured against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from trtship.needs import need
from trtship.session.base import Array, Session, is_torch
from trtship.spec import TensorSpec


@contextmanager
def _full_fp32(torch: Any) -> Iterator[None]:
    """fp32 products in fp32, on the GPU and on the CPU, whatever the user has set; then as it was. It goes through
    `fp32_precision`, since PyTorch's older switches can neither be read nor put back once both kinds were used."""
    backends = torch.backends
    places = (
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
    )
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


class TorchSession(Session):
    """An `nn.Module` in eval mode, without gradients, its products in full fp32, on the device of its parameters.

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
        tensors = [feeds[s.name] if as_torch else self._tensor(feeds[s.name]) for s in self.inputs]
        tensors = [t.to(self._dtype) if t.is_floating_point() else t for t in tensors]
        with torch.inference_mode(), _full_fp32(torch):
            result = self._module(*tensors)
        values = result if isinstance(result, (tuple, list)) else [result]
        outputs = {
            spec.name: value.to(getattr(torch, spec.dtype)) for spec, value in zip(self.outputs, values, strict=True)
        }
        return outputs if as_torch else {name: value.cpu().numpy() for name, value in outputs.items()}

    def _tensor(self, array: Array) -> Any:
        """PyTorch takes neither steps backwards nor memory that is read-only without a warning."""
        plain = array if array.flags.writeable and array.flags.c_contiguous else array.copy()
        return self._torch.from_numpy(plain).to(self._device)

    def _release(self) -> None:
        self._module = None
