"""Tensors of a checkpoint: which can take a model's place, and their conversion to its dtypes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def form(tensor: Any) -> str:
    """Return `float32 [4, 3]`, for messages."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        return type(tensor).__name__
    if tensor.is_nested:  # it has no one shape
        return short(tensor.dtype)
    return f"{short(tensor.dtype)} {list(tensor.shape)}"


def short(dtype: torch.dtype) -> str:
    """Return a dtype without `torch.`."""
    return str(dtype).removeprefix("torch.")


def why_unusable(tensor: Any) -> str | None:
    """Return why a tensor from a file holds no values that can be copied, or None where it does."""
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return f"is a {type(tensor).__name__}"
    if tensor.is_meta:
        return "is a meta tensor, which has no values"
    if tensor.is_quantized:
        return "is quantized, which is not the float weight"
    if tensor.is_nested:
        return "is a nested tensor"
    if tensor.layout not in (torch.strided, torch.sparse_coo, torch.sparse_csr, torch.sparse_csc):
        return f"has the layout {tensor.layout}"
    return None


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor with every element written out; only for a shape that the model has, which bounds it.

    Raises:
        RuntimeError: If a sparse tensor's indices are outside its shape.
    """
    import torch

    tensor = tensor.detach()
    if tensor.layout is torch.strided:
        return tensor
    if tensor.layout is torch.sparse_coo:
        parts = (tensor._indices(), tensor._values())
        return torch.sparse_coo_tensor(*parts, tensor.shape, check_invariants=True).to_dense()
    by_row = tensor.layout is torch.sparse_csr
    compressed = tensor.crow_indices() if by_row else tensor.ccol_indices()
    plain = tensor.col_indices() if by_row else tensor.row_indices()
    return torch.sparse_compressed_tensor(
        compressed, plain, tensor.values(), tensor.shape, layout=tensor.layout, check_invariants=True
    ).to_dense()


def converted(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """Return the tensor's values in `dtype`, or None where they would not be the values that were meant.

    1. Between float16, bfloat16, float32 and float64, and between the complex dtypes, values are rounded as usual.
    2. Integers and truth values change to others, and floats to integers, only where every value stays as it is, and
       is small enough for the file's dtype to hold every integer up to it.
    3. Anything else is refused: integers for a float weight are a quantized weight without its scale.
    """
    import torch

    source = tensor.dtype
    if source == dtype:
        return tensor
    ordinary = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if (source in ordinary and dtype in ordinary) or (source.is_complex and dtype.is_complex):
        return tensor.to(dtype)
    if dtype.is_floating_point or dtype.is_complex or source.is_complex:
        return None
    if source.is_floating_point:
        exact = 1 / torch.finfo(source).eps * 2
        if source not in ordinary or not bool((tensor.double().abs() <= exact).all()):
            return None
    result = tensor.to(dtype)
    return result if torch.equal(result.to(source), tensor) else None
