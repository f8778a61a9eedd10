"""Kernel timings of full TensorRT: what one build measured, the next one on that GPU is given.

TensorRT for RTX has the same calls, which do nothing there: the tests go through the real ones.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from graphs import written
from trtship.engine import build, plan_from_onnx
from trtship.engine.timings import TimingStore
from trtship.family import Family, choose_family, installed_families
from trtship.gpu import Gpu
from trtship.spec import ShapeRange, TensorSpec

GPU = Gpu(index=0, name="NVIDIA H100", compute_capability="9.0", memory_mib=81559, driver="580.1", uuid="GPU-0")
INPUTS = (TensorSpec(name="x", shape=("B", 8)),)
RANGES = {"B": ShapeRange(min=1, opt=2, max=4)}
BODY = "(float[B, 8] x) => (float[B, 8] y) { y = MatMul(x, w) }"
needs_tensorrt = pytest.mark.skipif(not installed_families(), reason="needs TensorRT")


class Fake:
    """A family's name and version."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


def test_timings_are_of_one_gpu_driver_and_tensorrt(tmp_path: Path) -> None:
    ours: Any = Fake("tensorrt 10.16")
    TimingStore(ours, GPU, root=tmp_path).keep(b"times")
    assert TimingStore(ours, msgspec.structs.replace(GPU, index=2, uuid="GPU-2"), root=tmp_path).load() == b"times"
    other: Any = Fake("tensorrt 11.1")
    others = [TimingStore(other, GPU, root=tmp_path)] + [
        TimingStore(ours, msgspec.structs.replace(GPU, **{field: "other"}), root=tmp_path)
        for field in ("name", "compute_capability", "driver")
    ]
    assert [one.load() for one in others] == [b""] * len(others)


class Config:
    """A builder's configuration; a cache of another GPU is refused."""

    def __init__(self) -> None:
        self.cache: Any = None

    def create_timing_cache(self, saved: bytes) -> bytes:
        return saved

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.startswith(b"other"):
            return False
        self.cache = SimpleNamespace(serialize=lambda: cache + b", and new ones")
        return True

    def get_timing_cache(self) -> Any:
        return self.cache

    def __getattr__(self, name: str) -> Any:
        return lambda *_: 0


@pytest.mark.parametrize(
    ("given", "found"),
    [(b"times", b"times, and new ones"), (b"other", b", and new ones"), (b"", b", and new ones"), (None, b"")],
)
@needs_tensorrt
def test_timings_that_do_not_fit_are_begun_anew(given: bytes | None, found: bytes) -> None:
    family, config = choose_family()[0], Config()
    builder: Any = SimpleNamespace(create_builder_config=lambda: config)
    family.create_config(
        builder, None, profiles=(), tf32=True, targets=(), on_step=lambda done, text: True, timings=given
    )
    assert family.timings(config) == found


@needs_tensorrt
def test_a_build_that_times_kernels_keeps_the_times_and_is_given_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[bytes | None] = []
    create_config = Family.create_config

    def seen(self: Family, *arguments: Any, timings: bytes | None, **options: Any) -> Any:
        given.append(timings)
        return create_config(self, *arguments, timings=timings, **options)

    monkeypatch.setenv("TRTSHIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "list_gpus", lambda: (GPU,))
    monkeypatch.setattr(Family, "create_config", seen)
    family, _ = choose_family()
    graph = written(tmp_path / "m.onnx", BODY, w=np.eye(8, dtype=np.float32))

    def built() -> int:
        return len(plan_from_onnx(graph, family=family, inputs=INPUTS, ranges=RANGES).data)

    assert built() > math.prod((8, 8)) * 4
    monkeypatch.setattr(Family, "times_kernels", lambda self: True)
    assert built()
    assert built()
    kept = TimingStore(family, GPU).load()
    assert kept
    assert given == [*([None] if family.is_rtx else [b""]), b"", kept]
