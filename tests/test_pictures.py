import os

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from trtship.errors import ImageError
from trtship.pictures import list_image_folder, open_image


def picture(path, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 80).convert("RGB").save(path)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff"])
def test_a_picture_opens_with_its_pixels_and_without_its_file(tmp_path, suffix):
    path = picture(tmp_path / f"a.{suffix}")
    image = open_image(path)
    path.unlink()
    assert np.asarray(image).shape == (16, 20, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff"])
def test_a_truncated_picture_is_refused(tmp_path, suffix):
    path = picture(tmp_path / f"a.{suffix}", (200, 160))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=str(path)) as caught:
        open_image(path)
    assert caught.value.why
    assert caught.value.do


def test_what_is_no_picture_is_refused_with_the_reason(tmp_path):
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    for name, reason in [
        ("text.jpg", "no picture format"),
        ("empty.png", "empty"),
        ("none.png", "no such"),
        (".", "director"),
    ]:
        with pytest.raises(ImageError, match=f"(?i){reason}"):
            open_image(tmp_path / name)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = picture(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="too large"):
        open_image(path)


def test_a_folder_lists_as_torchvision_lists_it(tmp_path):
    for name in ["b/2.PNG", "b/10.jpg", "b/deep/er/1.webp", "a/x.jpeg", "a/deep/y.tiff", "10/z.bmp", "9/q.png"]:
        picture(tmp_path / name)
    (tmp_path / "a/notes.txt").write_text("skipped")
    picture(tmp_path / "elsewhere" / "l.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "9" / "link")
    (tmp_path / "README.md").write_text("skipped")
    classes, samples = list_image_folder(tmp_path)
    theirs = ImageFolder(str(tmp_path))
    assert list(classes) == theirs.classes
    assert [(str(path), index) for path, index in samples] == theirs.samples


def test_an_empty_folder_and_one_without_classes_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "flat" / "1.png")
    with pytest.raises(ImageError, match="empty"):
        list_image_folder(tmp_path / "empty")
    with pytest.raises(ImageError, match="1 pictures that belong to no class"):
        list_image_folder(tmp_path / "flat")
    with pytest.raises(ImageError, match="No such"):
        list_image_folder(tmp_path / "none")


def test_a_class_without_pictures_is_named(tmp_path):
    picture(tmp_path / "cat" / "1.png")
    (tmp_path / "dog").mkdir()
    with pytest.raises(ImageError, match="dog"):
        list_image_folder(tmp_path)
