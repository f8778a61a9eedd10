"""Ours against timm's, torchvision's and transformers' own transforms, on files of every kind that gives trouble."""

import subprocess
import sys

import numpy as np
import pytest
import timm.data
import torch
import torchvision.models
import torchvision.transforms.v2.functional
import transformers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from transformers.image_utils import load_image

from trtship.errors import ImageError, SpecError
from trtship.preprocess import CenterCrop, Normalize, Preprocess, Rescale, Resize, preprocess_images
from trtship.resample import REACH, resize_as_torch
from trtship.sources import timm as timm_source
from trtship.sources import torchvision as torchvision_source
from trtship.sources import transformers_images
from trtship.spec import from_json, to_json

RNG = np.random.default_rng(0)


def noise(height, width, channels=3):
    """Smooth and sharp at once: a gradient, edges and noise."""
    y, x = np.mgrid[0:height, 0:width]
    base = 127 + 90 * np.sin(x / 9)[..., None] * np.cos(y / 7)[..., None] + RNG.normal(0, 25, (height, width, channels))
    base[height // 3 : height // 2] = 250
    return np.clip(base, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rotated = Image.Exif()
    rotated[0x0112] = 6
    Image.fromarray(noise(301, 217)).save(folder / "rgb.jpg", quality=92)
    Image.fromarray(noise(240, 333)).save(folder / "rgb.png")
    Image.fromarray(noise(260, 261, 1)[..., 0]).save(folder / "grey.jpg")
    Image.fromarray(noise(300, 299, 4)).save(folder / "rgba.png")
    Image.fromarray(noise(277, 300, 4), mode="CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(noise(290, 303, 1)[..., 0].astype(np.uint16) * 2).save(folder / "sixteen.png")
    Image.fromarray(noise(301, 217)).save(folder / "exif.jpg", exif=rotated)
    Image.fromarray(noise(280, 290)).quantize(17).save(folder / "palette.png", transparency=3)
    Image.fromarray(noise(260, 250, 1)[..., 0]).convert("1").save(folder / "bilevel.png")
    Image.fromarray(noise(5, 7)).save(folder / "tiny.png")
    Image.fromarray(noise(40, 600)).save(folder / "wide.png")
    Image.fromarray(noise(400, 30)).save(folder / "tall.jpg")
    return sorted(folder.iterdir())


def levels(got, want, spec):
    """The largest difference in un-normalised units, where 1 is white."""
    std = np.array(next(step.std for step in spec.steps if isinstance(step, Normalize))).reshape(1, -1, 1, 1)
    return np.abs((got - want) * std).max()


TIMM = {
    "swin": {},
    "v2 at 256": {"input_size": (3, 256, 256)},
    "no crop": {"crop_pct": 1.0, "interpolation": "bilinear"},
    "squash": {"crop_mode": "squash", "crop_pct": 0.95},
    "border": {"crop_mode": "border", "crop_pct": 1.0},
    "border cropped": {"crop_mode": "border", "crop_pct": 0.9, "interpolation": "lanczos"},
    "not square": {"input_size": (3, 96, 160), "crop_pct": 0.875},
    "odd": {"input_size": (3, 79, 79), "crop_pct": 0.7, "interpolation": "lanczos"},
    "nearest": {"interpolation": "nearest", "input_size": (3, 64, 64)},
    "box": {"interpolation": "box", "input_size": (3, 64, 64)},
    "hamming": {"interpolation": "hamming", "input_size": (3, 64, 64)},
    "inception": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "input_size": (3, 299, 299)},
}


@pytest.mark.parametrize("name", TIMM)
def test_equals_timm(files, name):
    config = timm.data.resolve_data_config(
        pretrained_cfg=timm.get_pretrained_cfg("swin_tiny_patch4_window7_224").to_dict()
    )
    config |= TIMM[name]
    spec, notes = timm_source.preprocess_of(config)
    assert notes == []
    transform = timm.data.create_transform(**config, is_training=False)
    for file in files:
        want = transform(Image.open(file).convert("RGB"))[None].numpy()
        np.testing.assert_allclose(preprocess_images([file], spec), want, rtol=0, atol=1e-5, err_msg=file.name)


def test_equals_timm_on_one_channel(files):
    config = timm.data.resolve_data_config(
        pretrained_cfg={"input_size": (1, 28, 28), "mean": (0.4, 0.5, 0.9), "std": (0.2, 0.3, 0.1)}
    )
    spec, _ = timm_source.preprocess_of(config)
    averaged = {key: timm.data.loader.adapt_to_chs(config[key], 1) for key in ("mean", "std")}
    transform = timm.data.create_transform(**config | averaged, is_training=False)
    for file in files:
        want = transform(Image.open(file).convert("L"))[None].numpy()
        np.testing.assert_allclose(preprocess_images([file], spec), want, rtol=0, atol=1e-5, err_msg=file.name)


@pytest.mark.parametrize(
    "name", ["swin_t", "swin_v2_t", "convnext_tiny", "resnet50", "vit_b_16", "efficientnet_b3", "inception_v3"]
)
def test_equals_torchvision(files, name):
    transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    spec, notes = torchvision_source.preprocess_of(transform)
    assert notes == []
    for file in files:
        want = transform(Image.open(file).convert("RGB"))[None].numpy()
        np.testing.assert_allclose(preprocess_images([file], spec), want, rtol=0, atol=1e-5, err_msg=file.name)


PROCESSORS = {
    "swin": lambda: transformers.ViTImageProcessor(),
    "swin bicubic, imagenet": lambda: transformers.ViTImageProcessor(
        resample=3, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    ),
    "lanczos": lambda: transformers.ViTImageProcessor(resample=Image.Resampling.LANCZOS),
    "nearest": lambda: transformers.ViTImageProcessor(resample=Image.Resampling.NEAREST),
    "not square": lambda: transformers.ViTImageProcessor(size={"height": 65, "width": 130}),
    "resize and odd crop": lambda: transformers.ViTImageProcessor(
        size={"shortest_edge": 101}, do_center_crop=True, crop_size={"height": 64, "width": 60}
    ),
    "crop larger than resize": lambda: transformers.ViTImageProcessor(
        size={"shortest_edge": 50}, do_center_crop=True, crop_size={"height": 65, "width": 64}
    ),
    "convnext": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 224}),
    "convnext odd": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 65}, crop_pct=0.7),
    "convnext warped": lambda: transformers.ConvNextImageProcessor(),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_equals_transformers(files, name):
    processor = PROCESSORS[name]()
    spec, notes = transformers_images.preprocess_of(processor, 3, None)
    assert notes == []
    for file in files:
        want = processor(load_image(str(file)), return_tensors="np")["pixel_values"]
        got = preprocess_images([file], spec)
        assert got.shape == want.shape
        assert levels(got, want, spec) < 1e-5, file.name  # where 1/255 is asked for: it is exact


def test_equals_transformers_on_one_channel(files):
    processor = transformers.ViTImageProcessor(size={"height": 28, "width": 28}, image_mean=[0.5], image_std=[0.5])
    spec, _ = transformers_images.preprocess_of(processor, 1, None)
    for file in files:
        picture = ImageOps.exif_transpose(Image.open(file)).convert("L")
        want = processor(picture, return_tensors="np")["pixel_values"]
        assert levels(preprocess_images([file], spec), want, spec) < 1e-5, file.name


@pytest.mark.parametrize("interpolation", sorted(REACH))
@given(data=st.data())
def test_torch_arithmetic_is_torchs_bit_for_bit(interpolation, data):
    old, new = (data.draw(st.tuples(st.integers(1, 200), st.integers(1, 200))) for _ in range(2))
    edges = np.random.default_rng(data.draw(st.integers(0, 9))).choice([0, 255], (*old, 3)).astype(np.uint8)
    tensor = torch.from_numpy(edges).permute(2, 0, 1)[None]
    mode = torchvision.transforms.InterpolationMode(interpolation)
    want = torchvision.transforms.v2.functional.resize(tensor, new, interpolation=mode)[0].permute(1, 2, 0)
    np.testing.assert_array_equal(resize_as_torch(edges, *new, interpolation), want.numpy())


def test_exif_orientation_is_applied_where_the_source_applies_it(files):
    (file,) = [f for f in files if f.name == "exif.jpg"]
    spec, _ = torchvision_source.preprocess_of(torchvision.models.get_model_weights("resnet18").DEFAULT.transforms())
    turned = Preprocess(mode=spec.mode, exif_transpose=True, steps=spec.steps)
    upright = Image.open(file).transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(preprocess_images([file], turned), preprocess_images([upright], spec))
    assert np.abs(preprocess_images([file], turned) - preprocess_images([file], spec)).max() > 0.1


def test_a_batch_is_contiguous_float32_in_order(files):
    spec, _ = torchvision_source.preprocess_of(torchvision.models.get_model_weights("resnet18").DEFAULT.transforms())
    mixed = [files[0], str(files[1]), Image.open(files[2])]
    batch = preprocess_images(mixed, spec)
    assert (batch.shape, batch.dtype, batch.flags.c_contiguous) == ((3, *spec.output_shape), np.float32, True)
    for index, item in enumerate(mixed):
        np.testing.assert_array_equal(batch[index : index + 1], preprocess_images([item], spec))


SMALL = (Resize(height=8, width=8, fit="shortest", interpolation="bilinear"), CenterCrop(height=8, width=8))


@pytest.mark.parametrize(
    "steps",
    [
        (),
        (Rescale(factor=1.0),),
        SMALL[:1],
        (Rescale(factor=1.0), *SMALL),
        (*SMALL, Normalize(mean=(0.5,), std=(0.5,))),
        (CenterCrop(height=8, width=8, fill=(1, 2)),),
        (SMALL[1], SMALL[0]),
    ],
)
def test_steps_that_cannot_make_a_batch_are_refused(steps):
    with pytest.raises(ValueError, match=r"."):
        Preprocess(mode="RGB", exif_transpose=False, steps=steps)


def test_refused_in_a_manifest_with_the_place():
    good = to_json(Preprocess(mode="L", exif_transpose=False, steps=(*SMALL, Normalize(mean=(0.5,), std=(0.5,)))))
    for old, new in [
        (b'"L"', b'"CMYK"'),
        (b'"shortest"', b'"widest"'),
        (b'"normalize"', b'"exec"'),
        (b'"std"', b'"sdt"'),
        (b"0.5\n", b"0.0\n"),
    ]:
        assert old in good
        with pytest.raises(SpecError, match=r"\$"):
            from_json(good.replace(old, new), Preprocess, what="manifest.json")


sides = st.integers(1, 60)
resizes = st.builds(
    Resize,
    height=sides,
    width=sides,
    fit=st.sampled_from(["exact", "cover", "contain"]),
    interpolation=st.sampled_from(["bilinear", "box"]),
)
specs = st.builds(
    lambda resize, crop, mode, turn: Preprocess(
        mode=mode, exif_transpose=turn, steps=(resize, crop, Rescale(factor=1 / 255))
    ),
    resizes,
    st.builds(CenterCrop, height=sides, width=sides, rounding=st.sampled_from(["even", "down"])),
    st.sampled_from(["RGB", "L"]),
    st.booleans(),
)


@given(specs)
def test_reads_back_from_json_as_it_is_written(spec):
    assert from_json(to_json(spec), Preprocess, what="manifest.json") == spec


@given(specs, sides, sides)
def test_every_size_of_picture_becomes_the_one_shape_or_an_image_error(spec, height, width):
    try:
        batch = preprocess_images([Image.new("RGB", (width, height), (255, 255, 255))], spec)
    except ImageError as error:
        assert "too extreme" in error.what  # noqa: PT017
        assert min(spec.steps[0].size_of(height, width)) < 1
    else:
        assert batch.shape == (1, *spec.output_shape)
        assert set(np.unique(batch)) <= {np.float32(0), np.float32(255) * np.float32(1 / 255)}


def test_a_picture_too_long_to_resize_is_refused():
    steps = (Resize(height=600, width=600, fit="shortest", interpolation="bilinear"), CenterCrop(height=8, width=8))
    with pytest.raises(ImageError, match="too extreme"):
        preprocess_images([Image.new("L", (5000, 1))], Preprocess(mode="L", exif_transpose=False, steps=steps))


def test_no_pictures_are_refused():
    with pytest.raises(ImageError, match="no pictures"):
        preprocess_images([], Preprocess(mode="L", exif_transpose=False, steps=SMALL))


def test_runs_without_torch():
    code = "import sys, trtship.preprocess; sys.exit(any(m in sys.modules for m in ('torch', 'torchvision', 'onnx')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
