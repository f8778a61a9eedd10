"""Run a PyTorch module as a session: the reference that everything else is measured against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from trtship.needs import need
from trtship.session.base import Array, Session, is_torch
from trtship.session.module_copy import copy_module, set_to_infer, wide_dtypes, widen
from trtship.session.torch_state import full_fp32, unchanged_state
from trtship.spec import TensorSpec


class TorchSession(Session):
    """A private copy of an `nn.Module` in eval mode, its products in full fp32, on the device of its parameters.

    Neither the module, nor the feeds, nor the process's settings (random numbers, default dtype, grad mode ...) are
    changed by a run, whatever the model's code does to them. The copy keeps the dtypes of its parameters and buffers.

    Args:
        module: the module; it takes `inputs` by position and returns a tensor, or a tuple of them.
        inputs: the specs of its inputs.
        outputs: the specs of its outputs, in order; results are converted to their dtypes.
        dtype: None for the module's own; "float64" for a copy with everything real in float64 and everything complex in
            complex128, inputs included.
    """

    def __init__(
        self,
        module: Any,
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        dtype: Literal["float64"] | None = None,
    ) -> None:
        self._torch = torch = need("torch", purpose="running a PyTorch model")
        self._module = set_to_infer(copy_module(module))
        self._wide = wide_dtypes() if dtype else {}
        if dtype:
            widen(self._module)
        tensor = next(iter(self._module.parameters()), None)
        self._device = tensor.device if tensor is not None else torch.device("cpu")
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.runtime = f"PyTorch {torch.__version__}, {dtype or _dtypes(self._module)}, {self._device}"

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        torch = self._torch
        as_torch = is_torch(next(iter(feeds.values())))
        tensors = [self._private(feeds[s.name]) for s in self.inputs]
        with unchanged_state(torch):
            values = run_module(self._module, tensors)
        outputs = {
            spec.name: value.to(getattr(torch, spec.dtype)) for spec, value in zip(self.outputs, values, strict=True)
        }
        return outputs if as_torch else {name: value.cpu().numpy() for name, value in outputs.items()}

    def _private(self, array: Array) -> Any:
        """A tensor of its own memory: a model may write to its inputs."""
        tensor = array.detach().clone() if is_torch(array) else self._torch.from_numpy(array.copy()).to(self._device)
        return tensor.to(self._wide.get(tensor.dtype, tensor.dtype))

    def _release(self) -> None:
        self._module = None


def run_module(module: Any, tensors: Sequence[Any]) -> list[Any]:
    """Run a private copy on tensors that it may write to, without gradients, its products in full fp32.

    Returns:
        Its outputs, in memory of their own: a model may return a buffer that its next run writes to.
    """
    torch = need("torch", purpose="running a PyTorch model")
    with torch.no_grad(), full_fp32(torch):
        result = module(*tensors)
    return [value.detach().clone() for value in (result if isinstance(result, (tuple, list)) else [result])]


def _dtypes(module: Any) -> str:
    """The floating and complex dtypes of its parameters and buffers, parameters first."""
    tensors = [*module.parameters(), *module.buffers()]
    found = dict.fromkeys(t.dtype for t in tensors if t.is_floating_point() or t.is_complex())
    return " and ".join(str(dtype).removeprefix("torch.") for dtype in found) or "float32"
