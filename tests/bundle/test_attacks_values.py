"""Manifests with values that no bundle has, hashed again: refused before anything large is allocated."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hostile import plain_manifest, rehashed, write_plain
from PIL import Image

import trtship
from deployed import copy_of, run_python
from trtship.bundle import Bundle, room
from trtship.bundle.limits import MAX_SIZE, MAX_VERDICTS
from trtship.bundle.room import require_room
from trtship.errors import BundleError, InputError, MachineError
from trtship.report.page import render
from trtship.report.verdicts import MAX_SHOWN, bounded
from trtship.verify import Verdict

Deployed = Callable[[str, str], Path]
LETTER = [{"name": "input", "shape": ["B", 3, 8, 8], "dtype": "float32"}]


@pytest.fixture
def folder(deployed: Deployed, tmp_path: Path) -> Path:
    return copy_of(deployed("colours", "fp16"), tmp_path)


def spec(**changes: Any) -> list[dict[str, Any]]:
    return [{**LETTER[0], **changes}]


HOSTILE: list[dict[str, Any]] = [
    *({"ranges": {"B": {"min": low, "opt": opt, "max": high}}} for low, opt, high in (
        (0, 0, 0), (-1, 1, 2), (1, 1, 10**9), (3, 2, 4), (1, 9, 4), (2, 3, 2**62), (1, 2, MAX_SIZE + 1),
    )),
    {"ranges": {}},
    {"ranges": {"X": {"min": 1, "opt": 2, "max": 4}}},
    *({"inputs": spec(shape=shape), "plan_inputs": spec(shape=shape)} for shape in (
        ["B", 10**6, 10**6], ["B", -3, 8, 8], ["B", 0, 8, 8], [10**12], ["B"] * 40, ["B", "", 8, 8], ["B", "L", 8, 8],
    )),
    *({"inputs": spec(name=name), "plan_inputs": spec(name=name)} for name in ("", "a\0b", "x" * 5000)),
    {"inputs": [], "plan_inputs": []},
    {"inputs": LETTER * 2, "plan_inputs": LETTER * 2},
    {"inputs": spec(dtype="object"), "plan_inputs": spec(dtype="object")},
    {"plan_inputs": spec(shape=["B", 3, 9, 9])},
    {"outputs": [], "plan_outputs": []},
    {"preprocess__steps__0__height": 30_000},
    {"preprocess__steps__0__width": 10**9},
    {"preprocess__steps__0__height": -8},
    {"preprocess__steps__1__factor": 1e300},
    {"preprocess__steps__0": {"op": "center_crop", "height": 30_000, "width": 30_000}},
    {"preprocess__steps__0": {"op": "center_crop", "height": 8, "width": 8, "fill": [10**9, 0, 0]}},
    {"preprocess__steps__1": {"op": "normalize", "mean": [1e308, 0, 0], "std": [1, 1, 1]}},
    {"preprocess__steps__1": {"op": "normalize", "mean": [0, 0, 0], "std": [1e-320, 1, 1]}},
    {"bounds": {}},
    {"bounds__plan__value": -1.0},
    {"bounds__plan__own": -1e308},
    {"bounds__plan__rows": {"min": -1.0}},
    {"max_drop": -1},
    {"max_drop": 1e9},
    {"gates": {"max_rel_l2": -1.0, "min_cosine": None}},
    {"gates": {"max_rel_l2": None, "min_cosine": 2.0}},
    {"profiles": [0]},
    {"profiles": [10**9]},
    {"profiles": [3] * 2000},
    {"reference_sizes": {"L": -1}},
    {"reference_sizes": {"L": 10**9}},
    {"created": "yesterday"},
    {"name": ""},
    {"name": "a\0b"},
    {"schema": 0},
    {"schema": -5},
    {"graph": "no.onnx"},
    {"plan": "../model.plan"},
    {"labels": "/etc/passwd"},
    {"recipe": {"a": "\0"}},
    {"verdicts": [{"subject": "plan", "gate": "g", "state": "passed"}] * (MAX_VERDICTS + 1)},
]  # fmt: skip


@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: str(change)[:60])
def test_a_value_that_no_bundle_has_is_refused(folder: Path, change: dict[str, Any]) -> None:
    rehashed(folder, **change)
    begun = time.monotonic()
    with pytest.raises(BundleError) as caught:
        trtship.load(folder, runtime="onnxruntime")
    assert time.monotonic() - begun < 10
    assert caught.value.exit_code == 2
    assert "manifest.json" in caught.value.what
    assert caught.value.why


@pytest.mark.parametrize(
    "name",
    ["a\0b", "a\nb", "C:a", "a\\b", "a//b", "./a", "", ".", "x" * 300, "/".join("a" * 40), "model.sig", "MODEL.onnx",
     "model.onnx/a", "manifest.json"],
)  # fmt: skip
def test_a_name_that_no_file_of_a_bundle_has_is_refused(folder: Path, name: str) -> None:
    plain = plain_manifest(folder)
    plain["files"][name] = "0" * 64
    write_plain(folder, plain)
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    assert "manifest.json" in caught.value.what


def test_a_digest_that_is_none_and_too_many_files_are_refused(folder: Path) -> None:
    plain = plain_manifest(folder)
    for more in ({"a": "zz"}, {"a": "A" * 64}, {f"f{n}": "0" * 64 for n in range(20_000)}):
        write_plain(folder, {**plain, "files": {**plain["files"], **more}})
        with pytest.raises(BundleError, match=r"manifest\.json"):
            Bundle.open(folder)


def test_a_manifest_that_is_nested_without_end_is_refused(folder: Path) -> None:
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    rehashed(folder, recipe={"a": deep})
    with pytest.raises(BundleError, match="nested"):
        Bundle.open(folder)
    (folder / "manifest.json").write_bytes(b'{"schema": 1, "recipe": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    with pytest.raises(BundleError):
        Bundle.open(folder)


def test_a_bundle_without_verdicts_on_its_graphs_is_shown_and_runs(folder: Path) -> None:
    for verdicts in ([], [{"subject": "plan", "gate": "rel_l2", "state": "passed"}]):
        rehashed(folder, verdicts=verdicts)
        assert "<html" in render(Bundle.open(folder))
        trtship.load(folder, runtime="onnxruntime").close()


def test_the_largest_batch_is_asked_for_before_it_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "memory_here", lambda: 8 * 2**30)
    rehashed(folder, ranges={"B": {"min": 2, "opt": 3, "max": 10_000_000}})
    with pytest.raises(MachineError, match="too little memory"):
        trtship.verify_bundle(folder, record=False)
    require_room(Bundle.open(folder), batch=4)
    rehashed(folder, ranges={"B": {"min": 10_000_000, "opt": 10_000_000, "max": 10_000_000}}, profiles=[])
    with (
        trtship.load(folder, runtime="onnxruntime") as session,
        pytest.raises(MachineError, match="too little memory"),
    ):
        session.classify([Image.new("RGB", (9, 9))])


def test_preprocessing_that_does_not_fit_the_model_is_refused_before_a_picture_is_read(folder: Path) -> None:
    rehashed(folder, preprocess__steps__0__height=8000, preprocess__steps__0__width=8000)
    with trtship.load(folder, runtime="onnxruntime") as session, pytest.raises(InputError, match="does not fit"):
        session.classify(["no.png"] * 1000)


def test_hostile_bundles_are_refused_within_little_memory(folder: Path) -> None:
    """An array whose header claims 4 TB."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"
    (folder / "reference/input-0.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    rehashed(folder)
    code = f"""
import resource, trtship
from trtship.bundle import Bundle
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
try:
    Bundle.open({str(folder)!r}).reference()
except trtship.errors.BundleError as error:
    print("refused:", error.why)
"""
    assert "refused: its header tells [1000000000000]" in run_python(code).stdout


def test_many_verdicts_are_shown_up_to_a_number_failures_first(folder: Path) -> None:
    many = [
        {"subject": f"plan {n}", "gate": f"g{n}", "state": "failed" if n == 8000 else "passed"}
        for n in range(MAX_VERDICTS)
    ]
    rehashed(folder, verdicts=many)
    begun = time.monotonic()
    page = render(Bundle.open(folder))
    assert time.monotonic() - begun < 20
    assert f"{MAX_SHOWN} of {MAX_VERDICTS} checks are shown here" in page
    assert "g8000" in page
    assert len(page) < 2_000_000
    shown, left = bounded([Verdict(subject="a", gate="g", state="passed")] * MAX_SHOWN)
    assert (len(shown), left) == (MAX_SHOWN, "")


def test_many_candidates_and_many_rows_are_refused(folder: Path) -> None:
    one = {"name": "a", "precision": "fp16"}
    plain = plain_manifest(folder)
    for name, value in (
        ("evidence/candidates.json", {"rule": "r", "gates": {}, "candidates": [one] * 5000}),
        ("evidence/stages.json", [{"name": "a", "seconds": 1.0}] * 5000),
    ):
        (folder / name).write_bytes(msgspec.json.encode(value))
        write_plain(folder, {**plain, "files": {**plain["files"], name: "0" * 64}})
        with pytest.raises(BundleError, match="are the most"):
            render(Bundle.open(folder))
        (folder / name).unlink()
        plain["files"].pop(name, None)


def test_an_honest_bundle_is_within_every_limit(deployed: Deployed) -> None:
    for kind, precision in (("colours", "fp16"), ("colours", "fp32")):
        bundle = Bundle.open(deployed(kind, precision))
        require_room(bundle)
        assert np.isfinite(next(iter(bundle.reference().inputs.values()))).all()
