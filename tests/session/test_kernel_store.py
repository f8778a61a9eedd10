"""Compiled kernels on disk: what is read back is what was written, or nothing."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtship.gpu import Gpu
from trtship.session.kernel_store import KernelStore

GPU = Gpu(index=0, name="NVIDIA H100", compute_capability="9.0", memory_mib=81559, driver="580.1", uuid="GPU-0")


def store(
    root: Path, *, plan: bytes = b"plan", gpu: Gpu = GPU, runtime: str = "tensorrt_rtx 1.6", **more: str
) -> KernelStore:
    return KernelStore(plan, gpu, runtime=runtime, variables=more, root=root)


def test_the_next_process_gets_what_was_kept(tmp_path: Path) -> None:
    first = store(tmp_path)
    assert first.load() == b""
    assert first.state == "none kept"
    first.keep(b"kernels")
    assert first.state == "kept"
    assert store(tmp_path).load() == b"kernels"


def test_kernels_are_another_plans_gpus_drivers_runtimes_or_environments(tmp_path: Path) -> None:
    store(tmp_path).keep(b"kernels")
    others = (
        store(tmp_path, plan=b"other"),
        store(tmp_path, runtime="tensorrt_rtx 1.7"),
        store(tmp_path, NVIDIA_TF32_OVERRIDE="0"),
        *(
            store(tmp_path, gpu=msgspec.structs.replace(GPU, **{field: "other"}))
            for field in ("name", "compute_capability", "driver")
        ),
    )
    assert len({other.file for other in others}) == len(others)
    assert [other.load() for other in others] == [b""] * len(others)


def test_where_the_gpu_sits_does_not_matter(tmp_path: Path) -> None:
    store(tmp_path).keep(b"kernels")
    assert store(tmp_path, gpu=msgspec.structs.replace(GPU, index=3, uuid="GPU-3")).load() == b"kernels"


@given(st.binary(min_size=1, max_size=64), st.data())
def test_a_file_that_is_not_as_it_was_written_is_discarded(
    tmp_path_factory: pytest.TempPathFactory, kernels: bytes, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("cache")
    kept = store(root)
    kept.keep(kernels)
    whole = kept.file.read_bytes()
    if data.draw(st.booleans(), label="cut"):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        place, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
        damaged = whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]
    kept.file.write_bytes(damaged)
    assert store(root).load() == b""
    assert not kept.file.exists()
    kept = store(root)
    kept.keep(kernels)
    assert store(root).load() == kernels


def test_what_was_loaded_is_not_written_again(tmp_path: Path) -> None:
    first = store(tmp_path)
    first.keep(b"kernels")
    written = first.file.stat().st_ino
    first.keep(b"kernels")
    again = store(tmp_path)
    again.keep(again.load())
    assert again.file.stat().st_ino == written
    again.keep(b"kernels and more")
    assert again.file.stat().st_ino != written
    assert store(tmp_path).load() == b"kernels and more"


def test_nothing_to_keep_leaves_no_file(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.keep(b"")
    assert not kept.file.exists()
    assert kept.state == "none kept"


def test_a_place_that_cannot_be_written_is_told_and_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "kernels").write_text("a file")
    kept = store(tmp_path)
    assert kept.load() == b""
    kept.keep(b"kernels")
    assert kept.state.startswith("not kept: ")
    assert "cannot write" in kept.state


def test_those_least_lately_used_make_way(tmp_path: Path) -> None:
    stores = [
        KernelStore(plan, GPU, runtime="r", variables={}, root=tmp_path, limit=600) for plan in (b"a", b"b", b"c", b"d")
    ]
    for age, one in enumerate(stores[:3]):
        one.keep(bytes(100) + bytes([age]))
        os.utime(one.file, (age, age))
    assert stores[0].load()  # used just now
    stores[3].keep(bytes(300))
    assert [one.file.exists() for one in stores] == [True, False, False, True]


def test_kernels_that_could_not_be_used_are_removed(tmp_path: Path) -> None:
    store(tmp_path).keep(b"kernels")
    kept = store(tmp_path)
    kept.load()
    kept.forget()
    assert store(tmp_path).load() == b""
    kept.keep(b"new")
    assert store(tmp_path).load() == b"new"
