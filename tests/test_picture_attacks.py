"""Files that are no pictures, given as such: refused at once, with a reason, wherever pictures are opened."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import struct
import subprocess
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import trtship
from deployed import COLOURS, paint
from trtship.errors import ImageError, TrtshipError
from trtship.pictures import FORMATS, MAX_PIXELS, hash_image, list_image_folder, open_image
from trtship.preprocess import CenterCrop, Preprocess, Resize, preprocess_images

Deployed = Callable[[str, str], Path]

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nnewpath 0 0 moveto\nshowpage\n%%EOF\n"
PSD = b"8BPS\x00\x01" + bytes(6) + b"\x00\x03\x00\x00\x00\x08\x00\x00\x00\x08\x00\x08\x00\x03" + bytes(12)
ICNS_, SGI = b"icns" + struct.pack(">I", 8), struct.pack(">HBBHHHH", 474, 0, 1, 3, 8, 8, 3) + bytes(500)
SPEC = Preprocess(
    mode="RGB", exif_transpose=True, steps=(Resize(height=8, width=8, fit="exact", interpolation="bilinear"),)
)


def encoded(format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (12, 10), (200, 10, 10)).save(stream, format, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("format", "suffix"),
    [(f, s) for f in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM") for s in ("jpg", "png", "xyz")],
)
def test_formats_on_the_list_are_told_by_their_content(tmp_path: Path, format: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(encoded(format))
    assert np.abs(np.asarray(open_image(path).convert("RGB")).astype(int) - (200, 10, 10)).max() < 12


def test_a_jpeg_of_several_pictures_as_phones_write_them_opens(tmp_path: Path) -> None:
    stream = io.BytesIO()
    first, second = (Image.new("RGB", (12, 10), colour) for colour in ("red", "blue"))
    first.save(stream, "MPO", save_all=True, append_images=[second])
    (tmp_path / "a.jpg").write_bytes(stream.getvalue())
    assert open_image(tmp_path / "a.jpg").size == (12, 10)


@pytest.mark.parametrize("name", ["cat.png", "cat.jpg", "cat.eps"])
@pytest.mark.parametrize(
    "data", [EPS, b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 30, len(EPS), 0, 0, 0, 0) + EPS, PSD, ICNS_, SGI,
             encoded("ICO"), encoded("PCX"), encoded("TGA"), encoded("DDS"), encoded("PDF"), b"GIMP", b"%PDF-1.7"],
)  # fmt: skip
def test_other_formats_are_refused_whatever_they_are_called_and_start_nothing(
    tmp_path: Path, name: str, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", never)
    monkeypatch.setattr(subprocess, "check_call", never)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / name)
    assert "JPEG, PNG, WebP" in caught.value.do or "damaged" in caught.value.what


def test_only_decoders_on_the_list_are_ever_named() -> None:
    """Pillow opens pictures in one place of the package, with the list."""
    texts = {path.name: path.read_text() for path in Path(trtship.__file__).parent.rglob("*.py")}
    assert [name for name, text in texts.items() if "Image.open(" in text] == ["pictures.py"]
    assert texts["pictures.py"].count("Image.open(") == 1
    assert "formats=FORMATS" in texts["pictures.py"]
    assert "EPS" not in FORMATS


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    socket.socket(socket.AF_UNIX).bind(str(path))


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


KINDS: dict[str, Callable[[Path], None]] = {
    "fifo": fifo,
    "socket": bound_socket,
    "zero": link_to("/dev/zero"),
    "null": link_to("/dev/null"),
    "tty": link_to("/dev/tty"),
    "random": link_to("/dev/urandom"),
    "proc": link_to("/proc/self/mem"),
    "kernel log": link_to("/proc/kmsg"),
    "status": link_to("/proc/self/status"),
    "loop": link_to("cat.png"),
    "folder": lambda path: path.mkdir(),
    "gone": link_to("nowhere"),
}


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """Names of sockets have 100 characters at most."""
    return tmp_path if len(str(tmp_path)) < 80 else Path(os.path.relpath(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused_at_once(short: Path, kind: str) -> None:
    path = short / "cat.png"
    KINDS[kind](path)
    begun = time.monotonic()
    for read in (open_image, hash_image, lambda p: preprocess_images([p], SPEC)):
        if kind in ("status", "proc", "kernel log") and read is hash_image:
            continue  # files of /proc say that they are regular and empty
        with pytest.raises(ImageError) as caught:
            read(path)
        assert caught.value.why
    assert time.monotonic() - begun < 5


def test_a_fifo_behind_a_link_among_pictures_is_refused_everywhere(deployed: Deployed, short: Path) -> None:
    bundle = deployed("colours", "fp16")
    paint(short / "eval", {"red": [(250, 0, 0)], "green": [(0, 250, 0)], "blue": [(0, 0, 250)]})
    os.mkfifo(short / "pipe")
    (short / "eval" / "red" / "cat.png").symlink_to((short / "pipe").absolute())
    begun = time.monotonic()
    with pytest.raises(ImageError, match=r"cat\.png"):
        trtship.verify_bundle(bundle, eval_dir=short / "eval", record=False)
    with trtship.load(bundle, runtime="onnxruntime") as session:
        for ask in (session, session.classify, session.preprocess):
            with pytest.raises(ImageError, match=r"cat\.png"):
                ask([short / "eval" / "red" / "cat.png"])
    (short / "colours.py").write_text(COLOURS)
    for options in ({"eval_dir": short / "eval"}, {"calib_dir": short / "eval", "precision": "int8"}):
        with pytest.raises(TrtshipError, match=r"cat\.png"):
            trtship.deploy(f"{short / 'colours.py'}:colours", short / "out", batch="2", **options)
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize(
    ("width", "height"), [(15_000, 10_000), (1, MAX_PIXELS + 1), (MAX_PIXELS + 1, 1), (2**31 - 1, 2**31 - 1)]
)
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path, width: int, height: int) -> None:
    (tmp_path / "a.png").write_bytes(png_header(width, height))
    with pytest.raises(ImageError, match=r"too large|damaged"):
        open_image(tmp_path / "a.png")


def test_the_message_tells_the_size_and_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_header(15_000, 10_000))
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / "a.png")
    assert "15000 x 10000" in caught.value.why
    assert str(MAX_PIXELS) in caught.value.why


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    os.truncate(tmp_path / "a.png", 2**40)
    begun = time.monotonic()
    with pytest.raises(ImageError, match="bytes"):
        open_image(tmp_path / "a.png")
    assert time.monotonic() - begun < 10


def test_a_picture_for_which_memory_is_too_little_is_the_users_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint(tmp_path, {"a": [(1, 2, 3)]})

    def none(*_: object, **__: object) -> None:
        raise MemoryError

    for place in ("PIL.ImageFile.ImageFile.load", "PIL.Image.Image.convert", "PIL.Image.Image.resize"):
        with monkeypatch.context() as patched:
            patched.setattr(place, none)
            with pytest.raises(ImageError, match="too large"):
                preprocess_images([tmp_path / "a" / "0.png"], SPEC)


def test_a_crop_that_pads_a_long_picture_without_end_is_refused() -> None:
    spec = Preprocess(mode="L", exif_transpose=False, steps=(CenterCrop(height=8000, width=8000),))
    with pytest.raises(ImageError, match="too extreme"):
        preprocess_images([Image.new("L", (1_000_000, 1))], spec)


def test_folders_that_link_to_themselves_have_an_end(tmp_path: Path) -> None:
    paint(tmp_path, {"a": [(1, 2, 3)]})
    for name in ("one", "two", "three"):
        (tmp_path / "a" / name).symlink_to(tmp_path / "a")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    begun = time.monotonic()
    _, found = list_image_folder(tmp_path)
    assert time.monotonic() - begun < 5
    assert (tmp_path / "a" / "0.png", 0) in found


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_gives_a_picture_or_our_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = bytearray(encoded(data.draw(st.sampled_from(FORMATS))))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "a.png"
    path.write_bytes(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    with contextlib.suppress(ImageError):
        assert preprocess_images([path], SPEC).shape == (1, 3, 8, 8)
