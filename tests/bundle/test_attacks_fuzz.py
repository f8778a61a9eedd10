"""Values of a manifest and of its evidence replaced by hostile ones, hashed again: refused, or run as they say.

Whatever is in a bundle, what comes out is an error of ours, soon, or a result; never another exception.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import copy, places, plain_manifest, put, write_plain
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trtship
from trtship.bundle import Bundle
from trtship.cli.main import main
from trtship.errors import GateError, MachineError, UserError
from trtship.report.page import render

Deployed = Callable[[str, str], Path]
SECONDS = 20.0
"""A whole round takes 0.1 s; this leaves room for a machine that is busy."""

NUMBERS = [0, -1, 1, 2, 3, 7, 255, 30_000, 10**9, 2**31, 2**53, -(2**63), 2**63 - 1, 0.0, -0.5, 1e-320, 1e308, -1e308]
TEXTS = ["", "\0", "a\0b", "..", "../x", "/etc/passwd", "model.onnx", "plan", "B", "x" * 5000, "\x1b[2J", "ä", "NaN"]
HOSTILE = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.none(),
    st.booleans(),
    st.sampled_from([[], {}, [1], [[]], {"B": 10**9}, {"": 1}, [0] * 40, ["x"], {"min": 0, "opt": 0, "max": 0}]),
)


@pytest.fixture(scope="module")
def bundle(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that every example may edit: what it edits it writes anew."""
    return copy(deployed("colours", "fp16"), tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="module")
def manifest(deployed: Deployed) -> dict[str, Any]:
    return plain_manifest(deployed("colours", "fp16"))


def used(folder: Path) -> list[str]:
    """Use a bundle in every way that reads values of it; the names of the errors."""
    found = []

    def attempt(act: Callable[[], object]) -> None:
        begun = time.monotonic()
        try:
            act()
        except (UserError, GateError, MachineError) as error:
            found.append(type(error).__name__)
        assert time.monotonic() - begun < SECONDS

    def run() -> None:
        with trtship.load(folder, runtime="onnxruntime") as session:
            session.classify(np.zeros((2, 3, 8, 8), np.float32))

    def inspect() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
            code = main(["inspect", str(folder)])
        assert code in (0, 1, 2, 3), errors.getvalue()

    attempt(lambda: Bundle.open(folder).reference())
    attempt(lambda: render(Bundle.open(folder)))
    attempt(run)
    attempt(inspect)
    return found


def test_the_bundle_is_good_before_it_is_edited(bundle: Path) -> None:
    assert used(bundle) == []


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_value_of_the_manifest(bundle: Path, manifest: dict[str, Any], data: st.DataObject) -> None:
    changed = manifest
    for _ in range(data.draw(st.integers(1, 3))):
        keys = st.sampled_from([key for key in changed if changed[key] not in ({}, [])])
        key = data.draw(keys)
        at = data.draw(st.sampled_from([(key,), *places(changed[key], (key,))]))
        changed = put(changed, at, data.draw(HOSTILE))
    write_plain(bundle, changed)
    used(bundle)


EVIDENCE = (
    "evidence/export.json",
    "evidence/simplify.json",
    "evidence/optimize.json",
    "evidence/precision.json",
    "evidence/build.json",
    "evidence/stages.json",
    "evidence/errors_by_layer.json",
    "evidence/originals.json",
    "reference/edges/names.json",
)
DEEP = b"[" * 200_000 + b"]" * 200_000
WRONG = st.sampled_from([b"", b"null", b"[]", b"{}", b"NaN", b"1e999", b"\xff\xfe", DEEP, b'{"a":' * 5000, b'"x"'])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_value_of_the_evidence(bundle: Path, manifest: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(EVIDENCE))
    before = (bundle / name).read_bytes()
    if data.draw(st.booleans()):
        value = json.loads(before)
        at = data.draw(st.sampled_from(list(places(value))))
        after = json.dumps(put(value, at, data.draw(HOSTILE))).encode()
    else:
        after = data.draw(WRONG)
    try:
        (bundle / name).write_bytes(after)
        write_plain(bundle, manifest)
        used(bundle)
    finally:
        (bundle / name).write_bytes(before)


HEADERS = st.sampled_from(
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 3, 8, 8), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (), }",
        "{'descr': '<U1', 'fortran_order': False, 'shape': (9,), }",
        "{'descr': '<M8[s]', 'fortran_order': True, 'shape': (9, 3), }",
        "{'descr': '<c8', 'fortran_order': False, 'shape': (9, 3, 8, 8), }",
        "{'descr': 'V1000000000', 'fortran_order': False, 'shape': (9, 3), }",
        "{'descr': '<f4'}",
        "(" * 300,
        "'" + "x" * 60_000 + "'",
    ]
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_header_and_any_size_of_a_reference_array(
    bundle: Path, manifest: dict[str, Any], data: st.DataObject
) -> None:
    arrays = [name for name in manifest["files"] if name.endswith(".npy")]
    name = data.draw(st.sampled_from(arrays))
    before = (bundle / name).read_bytes()
    header = data.draw(HEADERS).encode()
    after = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + before[128:]
    after = data.draw(st.sampled_from([after, b"", b"PK\x03\x04", b"\x80\x04.", before[:-1], before + b"1"]))
    try:
        (bundle / name).write_bytes(after)
        write_plain(bundle, manifest)
        assert "BundleError" in used(bundle)
    finally:
        (bundle / name).write_bytes(before)
