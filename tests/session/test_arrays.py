"""The kinds of arrays, as far as a machine without a GPU can tell; CuPy and GPUs are in tests/gpu, JAX in test_jax."""

from __future__ import annotations

import gc
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from trtship.session.arrays import FILES, NUMPY, kind_of
from trtship.session.arrays.exchange import CPU, CUDA, DeviceMemory, Shared, Tensor, _lent, opened
from trtship.session.arrays.other import KIND as OTHER


class Foreign:
    """An array of another package: DLPack, and nothing else."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **_: Any) -> Any:
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        found: tuple[int, int] = self.array.__dlpack_device__()
        return found


def test_arrays_are_told_from_other_things_of_the_same_packages() -> None:
    assert kind_of(np.ones(2)) is NUMPY
    assert kind_of(np.ones(2).view(type("Own", (np.ndarray,), {}))) is NUMPY
    tensor = kind_of(torch.ones(2))
    assert tensor is not None
    assert tensor.name == "a torch tensor"
    assert kind_of(torch.nn.Parameter(torch.ones(2))) is tensor
    assert kind_of(Foreign(np.ones(2))) is OTHER
    for thing in ([1.0], 3, None, "x", np.float32, torch.float32, {"x": 1}):
        assert kind_of(thing) is None


def test_every_kind_has_its_file() -> None:
    from importlib.util import find_spec

    assert all(find_spec(f"trtship.session.arrays.{file}") for file in FILES.values())


def test_no_package_is_imported_to_look_at_a_numpy_array() -> None:
    code = "import sys, numpy as np\nfrom trtship.session.arrays import kind_of\nkind_of(np.ones(1)); kind_of([1])\n"
    code += "print(sorted({'torch', 'cupy', 'jax', 'onnx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "uint8", "bool"])
def test_a_torch_tensor_on_the_host_is_seen_by_numpy_without_a_copy(dtype: str) -> None:
    tensor = torch.zeros(2, 3, dtype=getattr(torch, dtype))
    kind = kind_of(tensor)
    assert kind is not None
    assert kind.facts(tensor) == (dtype, (2, 3), "cpu", 0)
    view = kind.host(tensor)
    assert view.dtype == kind.host_dtype(dtype)
    assert view.ctypes.data == tensor.data_ptr()
    assert kind.wrap(view, dtype).data_ptr() == tensor.data_ptr()
    assert kind.wrap(view, dtype).dtype == tensor.dtype


def test_what_tells_one_call_from_another() -> None:
    kind = kind_of(torch.ones(1))
    assert kind is not None
    same = kind.key(torch.ones(2, 3))
    assert same == kind.key(torch.zeros(2, 3))
    for other in (torch.ones(3, 2), torch.ones(2, 3).half(), torch.ones(2, 3, device="meta")):
        assert kind.key(other) != same
    assert NUMPY.key(np.ones((2, 3), np.float32)) != NUMPY.key(np.ones((2, 3), np.float64))
    assert NUMPY.facts(np.ones(2, ">f4")).dtype != "float32"  # bytes in the other order


def test_sparse_tensors_have_no_dtype_that_an_input_has() -> None:
    sparse = torch.eye(3).to_sparse()
    kind = kind_of(sparse)
    assert kind is not None
    assert "sparse" in kind.facts(sparse).dtype


def test_other_packages_arrays_are_described_and_seen_where_they_lie() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    foreign = Foreign(array)
    assert OTHER.facts(foreign) == ("float32", (2, 3), "cpu", 0)
    assert OTHER.is_contiguous(foreign)
    assert not OTHER.is_contiguous(Foreign(array.T))
    assert OTHER.host(foreign).ctypes.data == array.ctypes.data


@pytest.mark.parametrize(
    ("shape", "strides", "dense"),
    [
        ((2, 3), (3, 1), True),
        ((2, 3), (1, 2), False),
        ((2, 3), (4, 1), False),
        ((1, 3), (99, 1), True),
        ((2, 1, 3), (3, 7, 1), True),
        ((), (), True),
    ],
)
def test_c_order_without_gaps(shape: tuple[int, ...], strides: tuple[int, ...], dense: bool) -> None:
    assert Tensor.is_dense(shape, strides) is dense


def test_a_capsule_is_looked_into_and_stays_the_owners() -> None:
    tensor = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    capsule = tensor.__dlpack__()
    found = opened(capsule)
    assert (found.address, found.dtype, found.shape, found.device) == (tensor.data_ptr(), "bfloat16", (2, 3), CPU)
    assert torch.equal(torch.from_dlpack(capsule), tensor)


def test_our_memory_goes_to_others_by_dlpack_and_lives_as_long_as_they_need_it() -> None:
    array = np.arange(6, dtype=np.float32)
    before = len(_lent)

    class Lender:
        def __dlpack__(self, **_: Any) -> Any:
            return Shared(array.ctypes.data, (2, 3), "float32", device=(CPU, 0), owner=array).capsule()

        def __dlpack_device__(self) -> tuple[int, int]:
            return CPU, 0

    tensor, view = torch.from_dlpack(Lender()), np.from_dlpack(Lender())
    assert tensor.tolist() == view.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert len(_lent) == before + 2
    part = tensor[1]
    del tensor, view
    gc.collect()
    assert len(_lent) == before + 1
    assert part.tolist() == [3, 4, 5]
    del part
    assert len(_lent) == before
    capsule = Lender().__dlpack__()  # one that nobody takes
    assert len(_lent) == before + 1
    del capsule
    assert len(_lent) == before


def test_a_result_on_the_gpu_waits_for_its_contents_and_frees_its_memory() -> None:
    """Over the stand-in for CUDA: what is asked of it, and in which order."""
    from fake_gpu import FakeCuda

    class Watched(FakeCuda):
        waits: list[tuple[int, int]]

        def wait(self, stream: int, event: int) -> None:
            self.waits.append((stream, event))

    cuda: Any = Watched()
    cuda.waits = []
    memory = DeviceMemory(cuda, (2, 3), "float16")
    assert (memory.nbytes, cuda.used, memory.__dlpack_device__()) == (12, 12, (CUDA, 0))
    memory.used_on(cuda.create_stream())
    found = opened(memory.__dlpack__(stream=77))
    assert (found.address, found.dtype, found.shape, found.device) == (memory.address, "float16", (2, 3), CUDA)
    memory.__dlpack__(stream=None)
    memory.__dlpack__(stream=-1)
    assert [stream for stream, _ in cuda.waits] == [77, 1]
    assert memory.__cuda_array_interface__["typestr"] == "<f2"
    with pytest.raises(BufferError):
        memory.__dlpack__(copy=True)
    capsule = memory.__dlpack__(stream=-1)
    del memory
    assert cuda.used == 12  # the capsule needs it
    del capsule, found
    gc.collect()
    assert cuda.used == 0
