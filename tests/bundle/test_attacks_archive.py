"""Archives that were made to fill the disk or the memory: refused soon, before a byte is written."""

from __future__ import annotations

import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hostile import rehashed
from hypothesis import given, settings
from hypothesis import strategies as st

from deployed import copy_of, run_python
from trtship.bundle import Bundle
from trtship.bundle.archive import pack_bundle, unpack_bundle
from trtship.bundle.archive_entries import MAX_ENTRIES
from trtship.errors import BundleError, OutputError

Deployed = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def archive(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = Bundle.open(deployed("colours", "fp16"))
    return pack_bundle(bundle, tmp_path_factory.mktemp("attacks") / "a.trtship.zip")


def rewritten(
    archive: Path,
    target: Path,
    *,
    change: Callable[[str, bytes], bytes | None] = lambda name, data: data,
    more: Any = (),
) -> Path:
    """The archive with entries changed, left out (None) or added: pairs of a ZipInfo or a name, and bytes."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            if (data := change(entry.filename, old.read(entry))) is not None:
                new.writestr(entry, data)
        for entry, data in more:
            new.writestr(entry, data)
    return target


def check_refused(archive: Path, match: str, *, within: float = 10, **options: Any) -> None:
    before, begun = sorted(archive.parent.iterdir()), time.monotonic()
    with pytest.raises(BundleError, match=match):
        unpack_bundle(archive, archive.parent / "new" / "out.trtship", **options)
    assert time.monotonic() - begun < within
    assert sorted(archive.parent.iterdir()) == before


def never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a folder was made")

    monkeypatch.setattr("trtship.bundle.archive.whole_folder", never)


def test_an_entry_without_a_name_is_refused(archive: Path, tmp_path: Path) -> None:
    bad = rewritten(archive, tmp_path / "bad.zip", more=[("A", b"x")])
    data = bytearray(bad.read_bytes())
    place = data.rindex(b"PK\x01\x02")
    assert data[place + 46 : place + 47] == b"A"
    shorter = data[: place + 28] + struct.pack("<H", 0) + data[place + 30 : place + 46] + data[place + 47 :]
    end = shorter.rindex(b"PK\x05\x06")
    size = struct.unpack("<L", shorter[end + 12 : end + 16])[0]
    shorter[end + 12 : end + 16] = struct.pack("<L", size - 1)
    bad.write_bytes(bytes(shorter))
    check_refused(bad, "no name")


def test_a_file_that_the_manifest_does_not_list_is_refused_before_anything_is_written(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_written(monkeypatch)
    big = zipfile.ZipInfo("big.bin")
    big.compress_type = zipfile.ZIP_DEFLATED
    check_refused(rewritten(archive, tmp_path / "a.zip", more=[(big, bytes(2**27))]), "does not list")


def test_a_file_that_is_missing_or_a_wrong_manifest_is_refused_before_anything_is_written(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_written(monkeypatch)
    check_refused(
        rewritten(archive, tmp_path / "a.zip", change=lambda n, d: None if n == "model.plan" else d), "is missing"
    )
    for data in (b"", b"{}", b"[" * 100_000, bytes(2**25)):
        bad = rewritten(archive, tmp_path / "b.zip", change=lambda n, d, data=data: data if n == "manifest.json" else d)
        check_refused(bad, "manifest")


def test_hostile_values_of_the_manifest_are_refused_before_anything_is_written(
    deployed: Deployed, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_written(monkeypatch)
    folder = rehashed(copy_of(deployed("colours", "fp16"), tmp_path), ranges={"B": {"min": 0, "opt": 0, "max": 0}})
    data = (folder / "manifest.json").read_bytes()
    bad = rewritten(archive, tmp_path / "b.zip", change=lambda n, d: data if n == "manifest.json" else d)
    check_refused(bad, "no bundle has")


def test_a_wrong_hash_stops_at_the_first_wrong_file(archive: Path, tmp_path: Path) -> None:
    bad = rewritten(archive, tmp_path / "b.zip", change=lambda n, d: b"other" if n == "labels.txt" else d)
    check_refused(bad, r"labels\.txt in .* cannot be trusted")


def test_more_than_the_disk_has_is_refused_first(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_written(monkeypatch)
    monkeypatch.setattr("trtship.files._free", lambda place: 1000)
    with pytest.raises(OutputError, match="are needed, and its disk has"):
        unpack_bundle(archive, tmp_path / "out.trtship")


def with_record(data: bytes, **changes: int) -> bytes:
    """A zip whose last record says other numbers: entries, size, offset."""
    fields = {"entries_here": (8, "<H"), "entries": (10, "<H"), "size": (12, "<L"), "offset": (16, "<L")}
    changed, end = bytearray(data), len(data) - 22
    assert data[end : end + 4] == b"PK\x05\x06"
    for name, value in changes.items():
        at, form = fields[name]
        changed[end + at : end + at + struct.calcsize(form)] = struct.pack(form, value)
    return bytes(changed)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"entries": 65_000, "entries_here": 65_000}, "65000 entries"),
        ({"size": 2**31}, "entries"),
        ({"size": 46}, "damaged"),
        ({"offset": 0}, "damaged"),
        ({"offset": 2**32 - 1}, "damaged"),
    ],
)
def test_a_last_record_that_lies_is_refused(archive: Path, tmp_path: Path, changes: dict[str, int], match: str) -> None:
    (tmp_path / "a.zip").write_bytes(with_record(archive.read_bytes(), **changes))
    check_refused(tmp_path / "a.zip", match)


def many_folders(target: Path, count: int, *, zip64: bool) -> Path:
    """A zip of `count` entries for folders, written by hand: Python's zipfile takes minutes for millions."""
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 33, 0, 0, 0, 2, 0) + b"d/"
    one = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 33, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0) + b"d/"
    size, offset = len(one) * count, len(local)
    with target.open("wb") as file:
        file.write(local)
        for _ in range(count // 10_000):
            file.write(one * 10_000)
        file.write(one * (count % 10_000))
        if zip64:
            file.write(struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, offset))
            file.write(struct.pack("<4sLQL", b"PK\x06\x07", 0, offset + size, 1))
            file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0))
        else:
            file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count % 65536, count % 65536, size, offset, 0))
    return target


def test_millions_of_folders_are_refused_soon_and_in_little_memory(tmp_path: Path) -> None:
    bad = many_folders(tmp_path / "bad.zip", 2_000_000, zip64=True)
    code = f"""
import time
from trtship.bundle.archive import unpack_bundle
from trtship.errors import BundleError
begun = time.monotonic()
try:
    unpack_bundle({str(bad)!r}, {str(tmp_path / "out")!r})
except BundleError as error:
    print("refused:", error.why)
assert time.monotonic() - begun < 5
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
    told = run_python(code).stdout.splitlines()
    assert told[0].startswith("refused: it has 2000000 entries")
    assert int(told[1]) < 500 * 1024  # KiB: Python, numpy and what else is imported take 100 MiB


def test_a_count_that_hides_entries_is_refused(tmp_path: Path) -> None:
    """65,536 + 10 entries, of which the record's 16 bits tell 10."""
    check_refused(many_folders(tmp_path / "bad.zip", 65_546, zip64=False), "no manifest|at most|files|is in it")
    check_refused(many_folders(tmp_path / "worse.zip", 1_000_000, zip64=False), "entries")
    assert MAX_ENTRIES < 65_546


def test_entries_that_share_their_bytes_are_refused(archive: Path, tmp_path: Path) -> None:
    """Each file of a "better zip bomb" stands for the same bytes."""
    data = bytearray(archive.read_bytes())
    first = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", first + 4)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    (tmp_path / "a.zip").write_bytes(bytes(data))
    check_refused(tmp_path / "a.zip", "shares its bytes|damaged")


def test_folders_as_other_tools_write_them_are_taken(archive: Path, tmp_path: Path) -> None:
    plain = rewritten(archive, tmp_path / "a.zip", more=[("evidence/", b""), ("reference/", b"")])
    assert unpack_bundle(plain, tmp_path / "out.trtship").manifest.name


def test_a_comment_or_bytes_behind_the_end_are_refused(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(archive.read_bytes() + b"more")
    check_refused(tmp_path / "a.zip", "last record")
    for data in (b"", b"PK", b"\0" * 100, b"PK\x05\x06" + bytes(18)):
        (tmp_path / "b.zip").write_bytes(data)
        check_refused(tmp_path / "b.zip", "zip|manifest")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_change_of_bytes_is_refused_or_gives_the_same_bundle(
    archive: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(archive.read_bytes())
    directory = whole.index(b"PK\x01\x02")
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.one_of(st.integers(directory, len(whole) - 1), st.integers(0, len(whole) - 1)))
        whole[place] = data.draw(st.sampled_from([0, 1, 255, 128, 80]))
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.zip").write_bytes(bytes(whole))
    try:
        found = unpack_bundle(folder / "a.zip", folder / "out.trtship")
    except BundleError:
        assert [path.name for path in folder.iterdir()] == ["a.zip"]
    else:
        names = {p.relative_to(folder / "out.trtship").as_posix() for p in found.folder.rglob("*") if p.is_file()}
        assert names == {*found.manifest.files, "manifest.json"}
        assert msgspec.json.decode((found.folder / "manifest.json").read_bytes())["name"] == found.manifest.name
