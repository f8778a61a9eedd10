"""A bundle packed, and unpacked: the same bundle, or nothing at all."""

from __future__ import annotations

import random
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployed import copy_of
from trtship.bundle import Bundle
from trtship.bundle.archive import pack_bundle, unpack_bundle
from trtship.errors import BundleCorruptError, BundleError, OutputError

Deployed = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def bundle(deployed: Deployed) -> Bundle:
    return Bundle.open(deployed("colours", "fp16"))


@pytest.fixture(scope="session")
def archive(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_bundle(bundle, tmp_path_factory.mktemp("packed") / "colours.trtship.zip")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rewritten(archive: Path, target: Path, *, without: str = "", more: tuple[Any, ...] = ()) -> Path:
    """The archive with entries left out or added: pairs of a ZipInfo, or a name, and bytes."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            if entry.filename != without:
                new.writestr(entry, old.read(entry))
        for entry, data in more:
            new.writestr(entry, data)
    return target


def check_refused(archive: Path, match: str, **options: Any) -> None:
    before = sorted(path.name for path in archive.parent.iterdir())
    with pytest.raises(BundleError, match=match):
        unpack_bundle(archive, archive.parent / "out.trtship", **options)
    assert sorted(path.name for path in archive.parent.iterdir()) == before


def test_what_was_packed_is_unpacked_byte_for_byte(bundle: Bundle, archive: Path, tmp_path: Path) -> None:
    found = unpack_bundle(archive, tmp_path / "out.trtship")
    assert found.manifest == bundle.manifest
    assert contents(found.folder) == contents(bundle.folder)


def test_packing_twice_gives_the_same_bytes(bundle: Bundle, archive: Path, tmp_path: Path) -> None:
    copy = Bundle.open(copy_of(bundle.folder, tmp_path))
    assert pack_bundle(copy).read_bytes() == archive.read_bytes()
    assert (tmp_path / "copy.trtship.zip").is_file()


def test_what_the_manifest_does_not_list_is_not_packed(bundle: Bundle, tmp_path: Path) -> None:
    copy = copy_of(bundle.folder, tmp_path)
    (copy / "secret.txt").write_text("mine")
    with zipfile.ZipFile(pack_bundle(Bundle.open(copy))) as packed:
        assert "secret.txt" not in packed.namelist()


def test_a_file_that_changes_while_it_is_packed_leaves_no_archive(bundle: Bundle, tmp_path: Path) -> None:
    opened = Bundle.open(copy_of(bundle.folder, tmp_path))
    (opened.folder / "model.plan").write_bytes(b"another")
    with pytest.raises(BundleCorruptError, match="cannot be trusted"):
        pack_bundle(opened)
    assert [path.name for path in tmp_path.iterdir()] == ["copy.trtship"]


def test_nothing_is_replaced_unasked(bundle: Bundle, archive: Path, tmp_path: Path) -> None:
    copy = copy_of(bundle.folder, tmp_path)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "mine.txt").touch()
    (tmp_path / "a.zip").touch()
    with pytest.raises(OutputError, match="exists"):
        pack_bundle(bundle, tmp_path / "a.zip")
    with pytest.raises(OutputError, match="in the bundle itself"):
        pack_bundle(Bundle.open(copy), copy / "a.zip")
    with pytest.raises(OutputError, match="exists"):
        unpack_bundle(archive, copy)
    with pytest.raises(OutputError, match="no bundle"):
        unpack_bundle(archive, tmp_path / "plain", force=True)
    (copy / "model.plan").unlink()
    assert contents(unpack_bundle(archive, copy, force=True).folder) == contents(bundle.folder)


def as_link(name: str, target: str) -> tuple[zipfile.ZipInfo, str]:
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return entry, target


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        (("../escaped", "x"), "leads out"),
        (("a/../../escaped", "x"), "leads out"),
        (("/tmp/escaped", "x"), "leads out"),
        (("a//b", "x"), "leads out"),
        (("./a", "x"), "leads out"),
        (("..\\escaped", "x"), "no name"),
        (("C:escaped", "x"), "no name"),
        (("a\nb", "x"), "no name"),
        (as_link("evidence/link", "/etc/passwd"), "link"),
        (as_link("link/", "/etc"), "link"),
        (("MODEL.onnx", "x"), "twice"),
        (("more.bin", "x"), "does not list"),
        (("evidence/more.bin", "x"), "does not list"),
    ],
)
def test_names_and_kinds_that_a_bundle_has_not_are_refused(
    archive: Path, tmp_path: Path, entry: tuple[Any, str], match: str
) -> None:
    check_refused(rewritten(archive, tmp_path / "bad.zip", more=(entry,)), match)
    assert not (tmp_path.parent / "escaped").exists()


def test_what_is_missing_or_has_no_manifest_is_refused(archive: Path, tmp_path: Path) -> None:
    check_refused(rewritten(archive, tmp_path / "a.zip", without="manifest.json"), "no manifest")
    check_refused(rewritten(archive, tmp_path / "b.zip", without="model.plan"), r"model\.plan cannot be trusted")


def test_more_than_is_taken_is_refused_before_it_is_unpacked(archive: Path, tmp_path: Path) -> None:
    big = zipfile.ZipInfo("more.bin")
    big.compress_type = zipfile.ZIP_DEFLATED
    path = rewritten(archive, tmp_path / "bomb.zip", more=((big, bytes(64 * 2**20)),))
    assert path.stat().st_size < archive.stat().st_size + 2**17
    check_refused(path, "MiB", max_mib=60)


def test_a_size_that_is_a_lie_is_refused(archive: Path, tmp_path: Path) -> None:
    """The directory at the end says 1 byte; the entry goes on."""
    data = bytearray(archive.read_bytes())
    name = b"model.plan"
    place = data.rindex(b"PK\x01\x02", 0, data.rindex(name))
    assert data[place + 46 : place + 46 + len(name)] == name
    data[place + 24 : place + 28] = struct.pack("<I", 1)
    (tmp_path / "lie.zip").write_bytes(bytes(data))
    check_refused(tmp_path / "lie.zip", "damaged|cannot be trusted")


def test_encrypted_and_oddly_compressed_entries_are_refused(archive: Path, tmp_path: Path) -> None:
    data = bytearray(archive.read_bytes())
    place = data.rindex(b"PK\x01\x02")
    data[place + 8] |= 1
    (tmp_path / "encrypted.zip").write_bytes(bytes(data))
    check_refused(tmp_path / "encrypted.zip", "encrypted")
    entry = zipfile.ZipInfo("more.bin")
    entry.compress_type = zipfile.ZIP_LZMA
    check_refused(rewritten(archive, tmp_path / "lzma.zip", more=((entry, b"x"),)), "compressed")


@settings(max_examples=100)
@given(st.binary(max_size=400))
def test_other_bytes_are_no_archive(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "a.zip").write_bytes(data)
    check_refused(folder / "a.zip", "not unpacked")


def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(bundle: Bundle, archive: Path, tmp_path: Path) -> None:
    """Of a zip's own fields some mean nothing, a time say: then what comes out is the bundle."""
    chance, data = random.Random(0), archive.read_bytes()
    tail = len(data) - 8192
    refused = 0
    for index in range(300):
        place = chance.randrange(len(data)) if index % 2 else chance.randrange(tail, len(data))
        flipped = bytearray(data)
        flipped[place] ^= 1 << chance.randrange(8)
        (tmp_path / "a.zip").write_bytes(bytes(flipped))
        try:
            found = unpack_bundle(tmp_path / "a.zip", tmp_path / "out.trtship", force=True)
        except BundleError:
            refused += 1
        else:
            assert contents(found.folder) == contents(bundle.folder)
    assert refused > 150
    assert {path.name for path in tmp_path.iterdir()} <= {"a.zip", "out.trtship"}


@pytest.mark.parametrize("name", ["absent.zip", "."])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="no packed bundle"):
        unpack_bundle(tmp_path / name, tmp_path / "out")
