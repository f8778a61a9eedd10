"""JAX arrays on the host, over onnxruntime and over the stand-in for a GPU; those on the GPU are in tests/gpu."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import jax
import msgspec
import numpy as np
import pytest
from fake_gpu import FakeContext, FakeEngine, Opens

from graphs import model_of
from trtship.errors import InputError, OutputError
from trtship.session.arrays import kind_of
from trtship.session.onnxruntime import OnnxRuntimeSession

LARGE = 5_000_000_000  # no int32
PLAIN = "(float[B, 4] x) => (float[B, 4] y) { y = Neg(x) }"
WIDE = {
    "int64": ("(float[B, 4] x) => (int64[B, 4] y) { w = Cast<to = 7>(x) y = Mul(w, large) }", np.int64(LARGE)),
    "float64": ("(float[B, 4] x) => (double[B, 4] y) { w = Cast<to = 11>(x) y = Mul(w, large) }", np.float64(1 / 3)),
}


def rows(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def on_host(array: np.ndarray[Any, Any]) -> Any:
    return jax.device_put(array, jax.devices("cpu")[0])


def session_of(text: str, **tensors: Any) -> OnnxRuntimeSession:
    return OnnxRuntimeSession(model_of(text, **tensors).SerializeToString(), providers="cpu")


@pytest.fixture
def plain() -> Iterator[OnnxRuntimeSession]:
    with session_of(PLAIN) as session:
        yield session


@pytest.fixture(params=WIDE)
def wide(request: pytest.FixtureRequest) -> Iterator[tuple[OnnxRuntimeSession, np.generic]]:
    text, large = WIDE[request.param]
    with session_of(text, large=np.asarray(large)) as session:
        yield session, large


def assert_is(found: Any, expected: np.ndarray[Any, Any]) -> None:
    """A JAX array on the host, of exactly these numbers and this dtype."""
    assert isinstance(found, jax.Array)
    assert {device.platform for device in found.devices()} == {"cpu"}
    assert np.asarray(found).dtype == expected.dtype
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_jax_in_jax_out(plain: OnnxRuntimeSession) -> None:
    for count in (1, 3, 8):
        assert_is(plain.infer({"x": on_host(rows(count))})["y"], -rows(count))
    assert_is(asyncio.run(plain.ainfer({"x": on_host(rows(2))}))["y"], -rows(2))
    for seed, found in enumerate(plain.map({"x": on_host(rows(3, seed))} for seed in range(4))):
        assert_is(found["y"], -rows(3, seed))


def test_what_jax_computes_is_waited_for(plain: OnnxRuntimeSession) -> None:
    work: Callable[[Any], Any] = jax.jit(lambda x: jax.lax.fori_loop(0, 100_000, lambda _, y: y + 1, x))
    assert_is(plain.infer({"x": work(on_host(np.zeros((2, 4), np.float32)))})["y"], np.full((2, 4), -1e5, np.float32))


def test_nothing_is_converted_on_the_way_in(plain: OnnxRuntimeSession) -> None:
    for dtype in (np.float16, np.int32):
        with pytest.raises(InputError, match=f"x is {np.dtype(dtype)}") as caught:
            plain.infer({"x": on_host(rows(2).astype(dtype))})
        assert "x: float32 [B, 4]" in caught.value.do
    with (
        pytest.raises(InputError, match="different kinds"),
        session_of("(float[B, 4] x, float[B, 4] z) => (float[B, 4] y) { y = Add(x, z) }") as two,
    ):
        two.infer({"x": on_host(rows(2)), "z": rows(2)})


def test_results_that_jax_would_cut_to_32_bits_are_refused_before_anything_runs(
    wide: tuple[OnnxRuntimeSession, np.generic], monkeypatch: pytest.MonkeyPatch
) -> None:
    session, large = wide
    x = np.ones((2, 4), np.float32)
    ran: list[Any] = []
    monkeypatch.setattr(session, "_run", lambda feeds: ran.append(feeds))
    for _ in range(2):
        with pytest.raises(InputError, match=f"y is {large.dtype}, which JAX does not hold") as caught:
            session.infer({"x": on_host(x)})
    assert "jax_enable_x64" in caught.value.do
    assert "numpy arrays" in caught.value.do
    with pytest.raises(InputError, match="JAX"):
        next(session.map([{"x": on_host(x)}]))
    assert not ran
    monkeypatch.undo()
    assert session.infer({"x": x})["y"].dtype == large.dtype


def test_where_jax_holds_64_bits_they_come_back_whole(wide: tuple[OnnxRuntimeSession, np.generic]) -> None:
    session, large = wide
    x = np.ones((2, 4), np.float32)
    expected = np.full((2, 4), large)
    with jax.enable_x64(True):
        assert_is(session.infer({"x": on_host(x)})["y"], expected)
        # of this thread alone, and what `ainfer` runs is in another
        assert_is(asyncio.run(session.ainfer({"x": on_host(x)}))["y"], expected)
    with pytest.raises(InputError, match="JAX"):  # the same call as before, but for JAX's switch
        session.infer({"x": on_host(x)})
    with jax.enable_x64(True):
        assert_is(session.infer({"x": on_host(x)})["y"], expected)


def test_an_array_that_was_deleted_is_refused(plain: OnnxRuntimeSession, opens: Opens) -> None:
    for session in (plain, opens()[0]):
        x = on_host(rows(2))
        session.infer({"x": x})
        x.delete()
        with pytest.raises(InputError, match="cannot be read") as caught:
            session.infer({"x": x})
        assert "deleted" in caught.value.why


def test_jax_arrays_are_not_written_to(plain: OnnxRuntimeSession) -> None:
    out = on_host(np.zeros((2, 4), np.float32))
    with pytest.raises(OutputError, match="not to be written to"):
        plain.infer({"x": on_host(rows(2))}, out=out)
    np.testing.assert_array_equal(np.asarray(out), 0)


def test_what_is_traced_is_no_array(plain: OnnxRuntimeSession) -> None:
    with pytest.raises(InputError, match="Tracer"):
        jax.jit(lambda x: plain.infer({"x": x})["y"])(on_host(rows(2)))
    assert kind_of(jax.numpy.float32) is None


def test_a_plan_takes_jax_arrays_of_the_host(opens: Opens) -> None:
    session, _, _ = opens()
    for count in (1, 3, 8, 8, 8, 20):  # eagerly, captured, replayed, in parts
        assert_is(session.infer({"x": on_host(rows(count))})["y"], 2 * rows(count) + 1)
    assert_is(asyncio.run(session.ainfer({"x": on_host(rows(4))}))["y"], 2 * rows(4) + 1)
    for seed, found in enumerate(session.map({"x": on_host(rows(8, seed))} for seed in range(6))):
        assert_is(found["y"], 2 * rows(8, seed) + 1)


def of_dtype(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """The stand-in's plan has y = x, of this dtype."""

    def moved(context: FakeContext, addresses: Any, stream: int) -> None:
        nbytes = int(np.prod(context.shape)) * (8 if dtype.endswith("64") else 2)
        context.engine.cuda.copy(addresses["y"], addresses["x"], nbytes, stream)

    monkeypatch.setattr(FakeContext, "execute", moved)
    monkeypatch.setattr(FakeContext, "largest_output", lambda self, name: 8 * 4 * 8)
    for side in ("inputs", "outputs"):
        (spec,) = getattr(FakeEngine, side)
        monkeypatch.setattr(FakeEngine, side, (msgspec.structs.replace(spec, dtype=dtype),))


def test_bfloat16_goes_through_a_plan_as_it_is(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    of_dtype(monkeypatch, "bfloat16")
    session, _, _ = opens()
    x = on_host(rows(4)).astype("bfloat16")
    for _ in range(3):
        assert_is(session.infer({"x": x})["y"], np.asarray(x))


def test_a_plan_of_64_bits_runs_on_jax_arrays_that_have_them(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    of_dtype(monkeypatch, "int64")
    session, cuda, _ = opens()
    with jax.enable_x64(True):
        x = on_host(np.full((4, 4), LARGE))
        for _ in range(3):
            assert_is(session.infer({"x": x})["y"], np.asarray(x))
        assert_is(asyncio.run(session.ainfer({"x": x}))["y"], np.asarray(x))
    cuda.calls.clear()
    with pytest.raises(InputError, match="y is int64, which JAX does not hold"):
        session.infer({"x": x})
    assert not cuda.calls
