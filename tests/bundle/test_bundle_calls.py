"""The ways to call a loaded bundle, on a machine without a GPU: `out=`, `ainfer`, `map`, `warm_up`, other packages'
arrays, processes."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import trtship
from deployed import BLUE, RED
from trtship.errors import ForkedError, InputError, OutputError

Deployed = Callable[[str, str], Path]


@pytest.fixture
def colours(deployed: Deployed) -> Iterator[trtship.BundleSession]:
    with trtship.load(deployed("colours", "fp32"), runtime="onnxruntime") as session:
        yield session


def images(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).random((count, 3, 8, 8), np.float32)


def assert_means(found: Any, x: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(np.asarray(found), x.mean((2, 3)), rtol=0, atol=1e-6)


def test_results_go_where_out_says(colours: trtship.BundleSession) -> None:
    for count in (3, 9):
        x, out = images(count), np.zeros((count, 3), np.float32)
        assert colours(x, out=out) is out
        assert_means(out, x)
        tensor = torch.zeros(count, 3)
        assert colours({"input": torch.from_numpy(x)}, out={"logits": tensor}) is tensor
        assert_means(tensor, x)
    with pytest.raises(OutputError, match=r"it takes a numpy array, float32 \[3, 3\]"):
        colours(images(3), out=np.zeros((3, 4), np.float32))
    with pytest.raises(InputError, match="out= is for arrays"):
        colours(Image.new("RGB", (8, 8), RED), out=np.zeros((1, 3), np.float32))


class Foreign:
    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **_: Any) -> Any:
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def test_arrays_of_other_packages_are_taken_by_dlpack(colours: trtship.BundleSession) -> None:
    x = images(5)
    assert_means(colours(Foreign(x)), x)
    with pytest.raises(InputError, match="float64") as caught:
        colours(Foreign(x.astype(np.float64)))
    assert "input: float32 [B, 3, 8, 8]" in caught.value.do


def test_a_view_of_memory_is_neither_pictures_nor_an_array(colours: trtship.BundleSession) -> None:
    for call in (colours, colours.classify, lambda view: next(colours.map([view]))):
        with pytest.raises(InputError, match="a memoryview is no picture") as caught:
            call(memoryview(images(2)))
        assert "arrays" in caught.value.do
    with pytest.raises(InputError, match="input is a memoryview"):
        colours({"input": memoryview(images(2))})


def test_await(colours: trtship.BundleSession) -> None:
    async def main() -> None:
        found = await asyncio.gather(*(colours.ainfer(images(2 + seed % 3, seed)) for seed in range(12)))
        for seed, one in enumerate(found):
            assert_means(one, images(2 + seed % 3, seed))
        pictures = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
        assert (await colours.ainfer(pictures)).argmax(1).tolist() == [0, 2]
        task = asyncio.create_task(colours.ainfer(images(4)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert_means(await colours.ainfer(images(3)), images(3))

    asyncio.run(main())


def test_map_takes_arrays_mappings_and_pictures_and_keeps_their_order(colours: trtship.BundleSession) -> None:
    pictures = [Image.new("RGB", (8, 8), RED)] * 2
    items: list[Any] = [images(3, 1), {"input": torch.from_numpy(images(4, 2))}, pictures, images(9, 3)]
    first, second, third, fourth = colours.map(items)
    assert_means(first, images(3, 1))
    assert isinstance(second, torch.Tensor)
    assert_means(second, images(4, 2))
    assert third.argmax(1).tolist() == [0, 0]
    assert_means(fourth, images(9, 3))


def test_map_may_be_given_one_buffer_again_and_again(colours: trtship.BundleSession) -> None:
    buffer = np.zeros((3, 3, 8, 8), np.float32)

    def frames() -> Iterator[Any]:
        for seed in range(6):
            buffer[...] = images(3, seed)
            yield buffer

    for seed, found in enumerate(list(colours.map(frames(), ahead=4))):
        assert_means(found, images(3, seed))


def test_warm_up_and_memory_mean_little_without_a_gpu_and_do_no_harm(colours: trtship.BundleSession) -> None:
    colours.warm_up([2, 4])
    colours.warm_up()
    assert colours.memory.total == 0


def in_child(session: trtship.BundleSession, told: Any) -> None:
    try:
        session(images(3))
        told.put("it ran")
    except ForkedError as error:
        told.put(f"{error.exit_code}: {error.what}")


def test_a_fork_is_refused_and_a_spawn_opens_its_own(colours: trtship.BundleSession) -> None:
    colours(images(3))
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    child = context.Process(target=in_child, args=(colours, told))
    child.start()
    assert told.get(timeout=60) == "2: this session was opened before the process forked"
    child.join(60)
    assert_means(colours(images(3)), images(3))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert_means(pool.apply(in_spawned, (colours.bundle.folder,)), images(3))


def in_spawned(folder: Path) -> Any:
    with trtship.load(folder, runtime="onnxruntime") as session:
        return session(images(3))


def test_warm_up_runs_the_bundles_own_sizes_whatever_runs_them(colours: trtship.BundleSession) -> None:
    """onnxruntime knows no ranges."""
    seen: list[tuple[int, ...]] = []
    run = colours._session._run
    colours._session._run = lambda feeds: seen.append(feeds["input"].shape) or run(feeds)  # type: ignore[method-assign,func-returns-value]
    colours.warm_up()
    colours.warm_up(n for n in (2, 4))
    assert seen == [(colours.ranges["B"].opt, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8)]
    with pytest.raises(InputError, match="takes batch sizes"):
        colours.warm_up([0])
    with pytest.raises(InputError, match="outside 2:3:4"):  # as a call of it is
        colours.warm_up([1])
    seen.clear()
    colours.warm_up([10])
    assert [shape[0] for shape in seen] == [4, 4, 2]


@pytest.mark.parametrize("wrong", [None, 3])
def test_mistakes_are_told_as_what_they_are(colours: trtship.BundleSession, wrong: Any) -> None:
    with pytest.raises(InputError, match="map takes batches"):
        list(colours.map(wrong))
    with pytest.raises(InputError, match=r"infer takes a dict|the feeds are a"):
        colours.infer(wrong)
    assert len(colours.classify([Image.new("RGB", (8, 8), RED)] * 2, top=np.int64(2))[0]) == 2  # type: ignore[arg-type]
    with pytest.raises(InputError, match="top='2' asks for nothing"):
        colours.classify(Image.new("RGB", (8, 8), RED), top="2")  # type: ignore[arg-type]
