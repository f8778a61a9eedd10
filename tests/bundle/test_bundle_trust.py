"""What is not as it was shipped is refused, and before any native code reads a byte of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trtship
from deployed import copy_of, reseal, run_python
from trtship.bundle import SCHEMA, Bundle, Manifest
from trtship.bundle.manifest import _digest, read_manifest, seal
from trtship.errors import BundleCorruptError, BundleError, BundleSchemaError
from trtship.spec import to_json

Deployed = Callable[[str, str], Path]


@pytest.fixture
def copy(deployed: Deployed, tmp_path: Path) -> Path:
    return copy_of(deployed("colours", "fp16"), tmp_path)


@pytest.fixture(scope="session")
def manifest(deployed: Deployed) -> bytes:
    return (deployed("colours", "fp16") / "manifest.json").read_bytes()


def sealed(plain: dict[str, Any]) -> bytes:
    """As an honest trtship of another version would write it."""
    return to_json({**plain, "seal": _digest(plain)})


def test_the_manifest_reads_back_as_it_was_written(manifest: bytes) -> None:
    assert seal(read_manifest(manifest, where="m")) == manifest


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_change_of_one_byte_of_the_manifest_is_refused(manifest: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(manifest) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda v: v != manifest[place]))
    with pytest.raises((BundleCorruptError, BundleSchemaError)):
        read_manifest(manifest[:place] + bytes([value]) + manifest[place + 1 :], where="m")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_bytes_added_or_cut_are_refused(manifest: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(manifest)))
    more = data.draw(st.sampled_from([b" ", b"\n", b"0", b"{}", b"\x00"]))
    with pytest.raises((BundleCorruptError, BundleSchemaError)):
        read_manifest(manifest[:place] + more + manifest[place:], where="m")
    cut = data.draw(st.integers(0, len(manifest) - 1))
    with pytest.raises((BundleCorruptError, BundleSchemaError)):
        read_manifest(manifest[:cut], where="m")


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_anything_else_is_no_manifest(data: bytes) -> None:
    with pytest.raises((BundleCorruptError, BundleSchemaError)):
        read_manifest(data, where="m")


def test_a_newer_schema_is_told_apart_from_damage(manifest: bytes) -> None:
    plain = msgspec.json.decode(manifest)
    with pytest.raises(BundleSchemaError, match="newer trtship") as caught:
        read_manifest(sealed({**plain, "schema": SCHEMA + 1, "unheard_of": {}}), where="m")
    assert "--upgrade" in caught.value.do


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"unheard_of": 1}, "unheard_of"),
        ({"max_drop": "much"}, "max_drop"),
        ({"files": {"model.onnx": 7}}, "files"),
        ({"precision": "fp4"}, "fp4"),
    ],
)
def test_a_key_or_a_value_out_of_the_schema_is_refused_by_name(
    manifest: bytes, change: dict[str, Any], match: str
) -> None:
    with pytest.raises(BundleSchemaError, match=match):
        read_manifest(sealed({**msgspec.json.decode(manifest), **change}), where="m")


def test_a_key_that_is_missing_is_refused(manifest: bytes) -> None:
    plain = msgspec.json.decode(manifest)
    del plain["family"]
    with pytest.raises(BundleSchemaError, match="family"):
        read_manifest(sealed(plain), where="m")


def test_an_older_manifest_without_fields_that_have_a_default_is_read(manifest: bytes) -> None:
    """The seal is over the JSON as written: to read it, nobody needs to write the same again."""
    plain = msgspec.json.decode(manifest)
    for verdict in plain["verdicts"]:
        del verdict["evaluation"], verdict["runtime"]
    found = read_manifest(sealed(plain), where="m")
    assert {v.runtime for v in found.verdicts} == {""}


def files(folder: Path) -> list[str]:
    return sorted(Bundle.open(folder).manifest.files)


def test_every_file_is_listed_and_a_flipped_byte_in_any_is_refused(copy: Path) -> None:
    on_disk = sorted(p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file())
    assert on_disk == sorted([*files(copy), "manifest.json"])
    for name in files(copy):
        path = copy / name
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(BundleCorruptError, match="cannot be trusted") as caught:
            trtship.load(copy)
        assert str(path) in caught.value.what
        path.write_bytes(data)
    trtship.load(copy).close()


FLIPS = 2000


def test_two_thousand_flipped_bits_over_every_file_are_all_refused_unread(copy: Path) -> None:
    """By their hashes: `test_no_native_code_is_even_imported_for_a_damaged_bundle` tells that nothing else looked."""
    chance = random.Random(20261124)
    names = [*files(copy), "manifest.json"]
    for index in range(FLIPS):
        path = copy / names[index % len(names)]
        data = path.read_bytes()
        place = chance.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :])
        with pytest.raises((BundleCorruptError, BundleSchemaError)):
            Bundle.open(copy)
        path.write_bytes(data)
    assert 20 * len(names) <= FLIPS
    Bundle.open(copy)


def test_a_missing_file_is_refused(copy: Path) -> None:
    (copy / "model.plan").unlink()
    with pytest.raises(BundleCorruptError, match=r"model\.plan"):
        Bundle.open(copy)


@pytest.mark.parametrize("damaged", ["model.onnx", "model.plan", "manifest.json", "reference/input-0.npy"])
def test_no_native_code_is_even_imported_for_a_damaged_bundle(copy: Path, damaged: str) -> None:
    data = bytearray((copy / damaged).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / damaged).write_bytes(bytes(data))
    code = f"""
import sys, trtship
for act in (trtship.load, trtship.verify_bundle):
    try:
        act({str(copy)!r})
    except trtship.TrtshipError as error:
        print(type(error).__name__)
native = {{"onnxruntime", "onnx", "onnx_ir", "tensorrt", "tensorrt_rtx", "torch", "cuda"}}
print(sorted(native & set(sys.modules)))
"""
    done = run_python(code)
    assert done.stdout.split("\n")[:3] == ["BundleCorruptError", "BundleCorruptError", "[]"], done.stdout


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../outside", "reference/../../outside"])
def test_names_that_leave_the_folder_are_refused(copy: Path, name: str) -> None:
    (copy.parent / "outside").write_text("secret")
    plain = msgspec.json.decode((copy / "manifest.json").read_bytes())
    for change in ({"files": {**plain["files"], name: "0" * 64}}, {"graph": name}, {"labels": name}):
        (copy / "manifest.json").write_bytes(sealed({**plain, **change}))
        with pytest.raises(BundleCorruptError, match="not its own"):
            trtship.load(copy, runtime="onnxruntime").classify(np.zeros((2, 3, 8, 8), np.float32))


def test_a_file_that_is_not_listed_is_not_read(copy: Path) -> None:
    """The reference data, say: unlisted, it was hashed by nobody."""
    manifest = Bundle.open(copy).manifest
    reseal(copy, files={n: d for n, d in manifest.files.items() if n != "reference/output-0.npy"})
    with pytest.raises(BundleError):
        trtship.verify_bundle(copy)


def test_a_file_that_changes_after_it_was_opened_is_refused(copy: Path) -> None:
    bundle = Bundle.open(copy)
    (copy / "model.plan").write_bytes(b"something else")
    with pytest.raises(BundleCorruptError):
        bundle.read("model.plan")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda p: None, "there is no such folder"),
        (lambda p: p.write_text("a file"), "it is a file"),
        (lambda p: p.mkdir(), "it has no manifest.json"),
    ],
)
def test_what_is_no_bundle_is_said(make: Callable[[Path], Any], why: str, tmp_path: Path) -> None:
    make(tmp_path / "b")
    with pytest.raises(BundleError) as caught:
        trtship.load(tmp_path / "b")
    assert caught.value.why == why


def test_every_field_of_the_manifest_is_required_or_written() -> None:
    """A field with a default would let an older manifest pass for one that says something. Two have one: manifests of
    schema 1 tell neither rules nor inputs, and bundles of that schema had none."""
    optional = {field.name for field in msgspec.structs.fields(Manifest) if not field.required}
    assert optional == {"rules", "tried"}
