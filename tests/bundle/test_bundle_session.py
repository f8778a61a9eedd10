"""`trtship.load` and the session it gives, on a machine without a GPU."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import trtship
from deployed import BLUE, GREEN, RED, copy_of, reseal, run_python
from trtship.bundle import Bundle
from trtship.errors import BundleCorruptError, DeviceError, ImageError, InputError, SpecError
from trtship.gpu import list_gpus

Deployed = Callable[[str, str], Path]
no_gpu = pytest.mark.skipif(bool(list_gpus()), reason="this machine has a GPU")


@pytest.fixture
def colours(deployed: Deployed) -> trtship.BundleSession:
    return trtship.load(deployed("colours", "fp32"), runtime="onnxruntime")


@no_gpu
def test_without_a_gpu_onnxruntime_runs_and_says_so(deployed: Deployed) -> None:
    with trtship.load(deployed("colours", "fp32")) as session:
        assert session.runtime.startswith("onnxruntime ")
        assert session.runtime.endswith("CPU: no NVIDIA GPU here")


def test_the_runtime_can_be_asked_for(colours: trtship.BundleSession) -> None:
    assert colours.runtime.endswith(": as asked")


@no_gpu
def test_tensorrt_asked_for_without_a_gpu_is_a_machine_error(deployed: Deployed) -> None:
    with pytest.raises(DeviceError, match="no NVIDIA GPU here"):
        trtship.load(deployed("colours", "fp32"), runtime="tensorrt")


def picture(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (20, 10), colour)


def test_pictures_may_be_paths_or_images_one_or_many(colours: trtship.BundleSession, tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    picture(RED).save(path)
    expected = np.array(RED, np.float32) / 255
    for one in (path, str(path), picture(RED), [path], (picture(RED),)):
        np.testing.assert_allclose(colours(one), expected[None], rtol=0, atol=1e-6)
    assert colours([path, picture(BLUE), str(path)]).argmax(1).tolist() == [0, 2, 0]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9, 11])
def test_any_number_of_pictures_runs_in_batches_that_the_plan_takes(
    colours: trtship.BundleSession, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan takes 2 to 4 at once: more are split, fewer are filled up and cut again."""
    sizes: list[int] = []
    inner = colours._session.infer
    monkeypatch.setattr(colours._session, "infer", lambda feeds: (sizes.append(len(feeds["input"])), inner(feeds))[1])
    wanted = [(RED, GREEN, BLUE)[i % 3] for i in range(count)]
    logits = colours([picture(c) for c in wanted])
    assert logits.argmax(1).tolist() == [i % 3 for i in range(count)]
    assert all(2 <= size <= 4 for size in sizes)
    assert count <= sum(sizes) <= count + 1


def test_arrays_come_back_as_they_came(colours: trtship.BundleSession) -> None:
    x = np.random.default_rng(0).random((3, 3, 8, 8), dtype=np.float32)
    from_numpy = colours(x)
    assert isinstance(from_numpy, np.ndarray)
    from_torch = colours(torch.from_numpy(x))
    assert isinstance(from_torch, torch.Tensor)
    np.testing.assert_array_equal(from_torch.numpy(), from_numpy)
    np.testing.assert_array_equal(colours({"input": x}), from_numpy)
    np.testing.assert_array_equal(colours.infer({"input": x})["logits"], from_numpy)
    np.testing.assert_allclose(from_numpy, x.mean((2, 3)), rtol=0, atol=1e-6)


def test_a_batch_below_the_plans_range_is_refused_wherever_it_runs(colours: trtship.BundleSession) -> None:
    with pytest.raises(InputError, match="outside 2:3:4"):
        colours(np.zeros((1, 3, 8, 8), np.float32))


@pytest.mark.parametrize("batch", [5, 8, 9, 11])
def test_a_batch_above_the_plans_range_is_run_in_parts(colours: trtship.BundleSession, batch: int) -> None:
    x = np.random.default_rng(batch).random((batch, 3, 8, 8), np.float32)
    np.testing.assert_allclose(colours(x), x.mean((2, 3)), rtol=0, atol=1e-6)
    tensor = colours(torch.from_numpy(x))
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_allclose(tensor.numpy(), x.mean((2, 3)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrong", [[], (), 7, [7], b"red.png", [None], [np.zeros((3, 8, 8), np.float32)]])
def test_what_is_neither_picture_nor_array_is_refused(colours: trtship.BundleSession, wrong: object) -> None:
    with pytest.raises((InputError, ImageError)):
        colours(wrong)


def test_a_picture_that_is_missing_is_named(colours: trtship.BundleSession, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.png"):
        colours(tmp_path / "none.png")


def test_a_session_is_not_sent_to_another_process(colours: trtship.BundleSession) -> None:
    with pytest.raises(InputError, match="send the bundle's path"):
        pickle.dumps(colours)


@pytest.mark.parametrize("top", [0, -1])
def test_no_classes_at_all_are_nothing_to_ask_for(colours: trtship.BundleSession, top: int) -> None:
    with pytest.raises(InputError, match="asks for nothing"):
        colours.classify(picture(GREEN), top=top)


@pytest.mark.parametrize("wrong", [None, 3, b"swin.trtship", ["swin.trtship"]])
def test_what_names_no_bundle_is_refused(wrong: Any) -> None:
    with pytest.raises(SpecError, match="names no bundle"):
        trtship.load(wrong)
    with pytest.raises(SpecError, match="names no bundle"):
        Bundle.open(wrong)


def test_an_unknown_runtime_is_refused(colours: trtship.BundleSession) -> None:
    with pytest.raises(SpecError, match="'trt' is no runtime"):
        trtship.load(colours.bundle.folder, runtime="trt")  # type: ignore[arg-type]


def test_classify_gives_the_likeliest_labels_first(colours: trtship.BundleSession) -> None:
    (guesses,) = colours.classify(picture(GREEN), top=2)
    assert [(g.index, g.label) for g in guesses] == [(1, "green"), (0, "red")]
    odds = np.exp(np.array(GREEN) / 255)
    assert guesses[0].probability == pytest.approx(odds[1] / odds.sum(), rel=1e-5)
    assert [len(row) for row in colours.classify([picture(RED)] * 5)] == [3] * 5
    tensor = torch.from_numpy(colours.preprocess([picture(BLUE)] * 2))
    assert colours.classify(tensor)[0][0].label == "blue"


def test_a_bundle_without_labels_or_preprocessing_says_so(deployed: Deployed, tmp_path: Path) -> None:
    folder = copy_of(deployed("colours", "fp32"), tmp_path)
    reseal(folder, labels=None, preprocess=None)
    with trtship.load(folder, runtime="onnxruntime") as session:
        assert session.bundle.labels is None
        assert session.classify(np.ones((2, 3, 8, 8), np.float32))[0][0].label == "0"
        with pytest.raises(InputError, match="no preprocessing"):
            session(picture(RED))


@pytest.mark.parametrize("label", ["plain", "Ünï cödé", "with, comma", "one\u2028line", "tab\there"])
def test_labels_keep_their_number_whatever_is_in_them(deployed: Deployed, tmp_path: Path, label: str) -> None:
    folder = copy_of(deployed("colours", "fp32"), tmp_path)
    (folder / "labels.txt").write_text("\n".join([label, "green", "blue"]) + "\n", encoding="utf-8")
    assert reseal(folder).labels == (label, "green", "blue")


def test_a_closed_session_is_refused_and_closing_twice_is_not(colours: trtship.BundleSession) -> None:
    with colours as session:
        session(picture(RED))
    colours.close()
    for images in (picture(RED), np.zeros((2, 3, 8, 8), np.float32)):
        with pytest.raises(InputError, match="closed"):
            colours(images)


def test_an_opened_bundle_loads_as_well_as_a_path(deployed: Deployed) -> None:
    bundle = Bundle.open(str(deployed("colours", "fp32")))
    with trtship.load(bundle, runtime="onnxruntime") as session:
        assert session.bundle is bundle


def test_a_graph_that_was_exchanged_after_opening_is_not_trusted_for_long(deployed: Deployed, tmp_path: Path) -> None:
    folder = copy_of(deployed("colours", "fp32"), tmp_path)
    (folder / "model.onnx").write_bytes((deployed("colours", "fp16") / "fp16" / "model.onnx").read_bytes())
    with pytest.raises(BundleCorruptError):
        trtship.load(folder)


BARE = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
import trtship
with trtship.load({bundle!r}) as session:
    print(session.runtime)
    print([g.label for g in session.classify({picture!r})[0]])
print(sorted(set({blocked!r}) & set(sys.modules)))
"""


@no_gpu
def test_a_machine_that_only_runs_bundles_needs_neither_torch_nor_onnx(deployed: Deployed, tmp_path: Path) -> None:
    picture(BLUE).save(tmp_path / "blue.png")
    blocked = (
        "torch",
        "torchvision",
        "onnx",
        "onnx_ir",
        "onnxscript",
        "onnxsim",
        "timm",
        "transformers",
        "safetensors",
    )
    code = BARE.format(
        blocked=(*blocked, "tensorrt", "tensorrt_rtx", "cuda"),
        bundle=str(deployed("colours", "fp16")),
        picture=str(tmp_path / "blue.png"),
    )
    runtime, labels, found = run_python(code).stdout.splitlines()
    assert runtime.startswith("onnxruntime")
    assert labels == "['blue', 'green', 'red']"
    assert found == "[]"
