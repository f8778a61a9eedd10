"""Which kernels a bundle's plan runs: recorded by the deploy, shown by `trtship inspect --kernels`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deployed import copy_of, reseal
from trtship.bundle import Bundle
from trtship.bundle.kernels import bundle_kernels
from trtship.cli.main import main
from trtship.engine import LAYERS_FILE, PlanLayers
from trtship.errors import BundleError, InputError
from trtship.spec import from_json, to_json

Deployed = Callable[[str, str], Path]
NAME = f"evidence/{LAYERS_FILE}"


def spoil(folder: Path, layers: PlanLayers) -> None:
    (folder / NAME).write_bytes(to_json(layers))
    reseal(folder)


def test_a_deploy_records_the_layers_of_its_plan(deployed: Deployed) -> None:
    bundle = Bundle.open(deployed("swin", "fp16"))
    layers = from_json(bundle.read(NAME), PlanLayers, what=NAME)
    assert layers.source in ("build log", "engine inspector")
    assert len(layers.layers) > 30
    report = bundle_kernels(bundle)
    assert (report.layers, report.source) == (sum(n.profile == report.profile for n in layers.layers), layers.source)
    assert [(b.maps, b.tokens, b.depth) for b in report.attention] == [(8, 49, 12)] * 2 + [(4, 49, 12)] * 2
    assert {b.state for b in report.attention} <= {"fused", "not fused"}
    assert all(b.kernels for b in report.attention)
    assert report.gelu.nodes == 4
    assert report.unjoined_names == ()


def test_every_batch_size_with_kernels_of_its_own_tells_them(deployed: Deployed) -> None:
    bundle = Bundle.open(deployed("swin", "fp16"))
    sizes = bundle.manifest.profiles
    assert len(sizes) == 3
    reports = [bundle_kernels(bundle, batch=size) for size in sizes]
    assert [report.profile for report in reports] == [1, 2, 3]
    between = next(size for size in range(sizes[0], sizes[-1]) if size not in sizes)
    whole = bundle_kernels(bundle, batch=between)
    assert whole.profile == 0
    assert all(0 < report.layers < whole.layers for report in reports)
    assert all(report.attention and report.unjoined_names == () for report in reports)
    with pytest.raises(InputError, match="does not fit the plan"):
        bundle_kernels(bundle, batch=sizes[-1] + 1)


def test_it_is_shown_as_tables_and_as_json(deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = deployed("swin", "fp16")
    assert main(["inspect", str(bundle), "--kernels", "--quiet"]) == 0
    shown = capsys.readouterr().out
    report = bundle_kernels(Bundle.open(bundle))
    assert all(block.name in shown for block in report.attention)
    fused = sum(block.state == "fused" for block in report.attention)
    assert f"{fused} of 4 blocks in a fused kernel" in shown
    assert f"{report.layers}: " in shown
    assert main(["inspect", str(bundle), "--kernels", "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"kernels": json.loads(to_json(report))}


def test_what_could_not_be_read_is_said_and_no_error(
    deployed: Deployed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = copy_of(deployed("swin", "fp16"), tmp_path)
    spoil(bundle, PlanLayers(source="", reason="TensorRT's log lists no layers", layers=()))
    assert main(["inspect", str(bundle), "--kernels", "--quiet"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "0 of 4 blocks in a fused kernel, 4 unknown" in shown
    assert "TensorRT's log lists no layers" in shown
    assert "11 in no layer that TensorRT names" in shown


def test_an_older_bundle_says_what_to_do(
    deployed: Deployed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(deployed("swin", "fp16"), tmp_path)
    files = {name: digest for name, digest in Bundle.open(folder).manifest.files.items() if name != NAME}
    reseal(folder, files=files)
    (folder / NAME).unlink()
    with pytest.raises(BundleError, match="does not tell its plan's kernels") as caught:
        bundle_kernels(Bundle.open(folder))
    assert "deploy the model again" in caught.value.do
    assert main(["inspect", str(folder), "--kernels", "--quiet"]) == 2
    assert "deploy the model again" in capsys.readouterr().err
    assert main(["inspect", str(folder), "--quiet"]) == 0
