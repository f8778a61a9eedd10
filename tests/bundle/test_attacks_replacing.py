"""`--force` removes nothing that is not ours."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import trtship
from deployed import COLOURS, copy_of, reseal
from trtship.bundle import Bundle
from trtship.bundle.archive import pack_bundle, unpack_bundle
from trtship.bundle.debug import debug_bundle
from trtship.bundle.replacing import replaceable_bundle
from trtship.errors import OutputError
from trtship.files import whole_folder
from trtship.scale.repository import export_triton

Deployed = Callable[[str, str], Path]


@pytest.fixture
def folder(deployed: Deployed, tmp_path: Path) -> Path:
    return copy_of(deployed("colours", "fp16"), tmp_path)


def extension(place: Path) -> Path:
    """A browser extension: it has a manifest.json as well."""
    (place / "evidence").mkdir(parents=True)
    (place / "manifest.json").write_text(json.dumps({"manifest_version": 3, "name": "mine", "files": {}}))
    (place / "background.js").write_text("years of work")
    return place


def config_of_another(place: Path) -> Path:
    (place / "1").mkdir(parents=True)
    (place / "config.pbtxt").write_text('name: "mine"\n')
    (place / "1" / "model.onnx").write_text("mine")
    return place


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def forced(bundle: Path, target: Path, verb: str) -> None:
    if verb == "deploy":
        source = target.parent / "colours.py"
        source.write_text(COLOURS)
        trtship.deploy(f"{source}:colours", target, precision="fp32", batch="2", exporter="torchscript", force=True)
    elif verb == "keep-failed":
        source = target.parent / "colours.py"
        source.write_text(COLOURS)
        trtship.deploy(f"{source}:colours", target.parent / "out", keep_failed=target, force=True)
    elif verb == "unpack":
        unpack_bundle(pack_bundle(Bundle.open(bundle), target.parent / "a.zip", force=True), target, force=True)
    else:
        export_triton(Bundle.open(bundle), target.parent, name=target.name, format="onnx", force=True)


VERBS = ("deploy", "keep-failed", "unpack", "export-triton")


@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_that_merely_has_a_manifest_or_a_config_is_kept(folder: Path, tmp_path: Path, verb: str) -> None:
    for make in (extension, config_of_another):
        mine = make(tmp_path / make.__name__)
        before = contents(mine)
        with pytest.raises(OutputError, match="exists and is no"):
            forced(folder, mine, verb)
        assert contents(mine) == before


@pytest.mark.parametrize("verb", ["deploy", "keep-failed", "unpack"])
@pytest.mark.parametrize("stray", ["thesis.txt", ".env", "evidence/notes.md", "deep/er/a", "manifest.json.bak"])
def test_a_bundle_with_a_file_more_is_kept_and_the_file_is_named(
    folder: Path, deployed: Deployed, verb: str, stray: str
) -> None:
    (folder / stray).parent.mkdir(parents=True, exist_ok=True)
    (folder / stray).write_text("mine")
    before = contents(folder)
    with pytest.raises(OutputError) as caught:
        forced(deployed("colours", "fp16"), folder, verb)
    assert repr(stray) in caught.value.why
    assert contents(folder) == before


def stray_link(folder: Path) -> None:
    (folder / "link").symlink_to("/etc")


def stray_fifo(folder: Path) -> None:
    os.mkfifo(folder / "fifo")


def forged_seal(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"colours', b'"colors_', 1))


def no_object(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


def a_folder(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()


@pytest.mark.parametrize("change", [stray_link, stray_fifo, forged_seal, no_object, a_folder])
def test_what_is_not_proven_to_be_ours_is_kept(folder: Path, change: Callable[[Path], None]) -> None:
    change(folder)
    with pytest.raises(OutputError):
        replaceable_bundle(folder)


def test_damaged_older_and_empty_ones_may_be_replaced(folder: Path, tmp_path: Path) -> None:
    (folder / "model.plan").unlink()
    (folder / "model.onnx").write_bytes(b"damaged")
    (folder / ".model.plan.0123abcd.partial").mkdir()
    (folder / ".model.plan.0123abcd.partial" / "model.plan").write_bytes(b"of a run that was killed")
    replaceable_bundle(folder)
    (tmp_path / "empty").mkdir()
    replaceable_bundle(tmp_path / "empty")


def test_a_link_to_a_bundle_and_a_file_are_kept(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "file").write_text("mine")
    for name in ("link", "file"):
        with pytest.raises(OutputError, match="exists and is no bundle"):
            replaceable_bundle(tmp_path / name)


def test_what_came_while_the_work_went_on_is_kept(folder: Path, tmp_path: Path) -> None:
    """The check is made again when the folders change places."""

    def work() -> None:
        with whole_folder(folder, replace=replaceable_bundle) as draft:
            (draft / "new").write_text("new")
            (folder / "thesis.txt").write_text("years")

    with pytest.raises(OutputError, match=r"thesis\.txt"):
        work()
    assert (folder / "thesis.txt").read_text() == "years"
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_pack_replaces_packed_bundles_alone(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as photos:
        photos.writestr("manifest.json", '{"files": {}}')
    (tmp_path / "text.zip").write_text("mine")
    for name in ("photos.zip", "text.zip"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(OutputError, match="not a packed bundle"):
            pack_bundle(Bundle.open(folder), tmp_path / name, force=True)
        assert (tmp_path / name).read_bytes() == before
    path = pack_bundle(Bundle.open(folder), tmp_path / "a.zip")
    reseal(folder, name="newer")
    assert unpack_bundle(pack_bundle(Bundle.open(folder), path, force=True), tmp_path / "b").manifest.name == "newer"


def test_debug_replaces_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputError, match="exists"):
        debug_bundle(folder, output=tmp_path / "mine")


def test_a_signature_that_is_a_folder_is_kept(folder: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from trtship.bundle.signature import sign_bundle

    plain = serialization.NoEncryption()
    key: Any = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (tmp_path / "k.pem").write_bytes(pem)
    (folder / "model.sig").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        sign_bundle(folder, key=tmp_path / "k.pem", force=True)


def test_a_plot_replaces_plots_alone(tmp_path: Path) -> None:
    from trtship.bench.plot import throughput_svg
    from trtship.bench.report import BenchReport
    from trtship.cli.bench import _check_plot

    (tmp_path / "drawing.svg").write_text("<svg><path d='M0 0'/></svg>")
    with pytest.raises(OutputError, match="not a plot"):
        _check_plot(tmp_path / "drawing.svg")
    report = BenchReport(model="m", precision="fp16", gpu=None, states=(), rows=())
    (tmp_path / "plot.svg").write_text(throughput_svg(report, title="t"))
    for name in ("plot.svg", "new.svg"):
        _check_plot(tmp_path / name)
