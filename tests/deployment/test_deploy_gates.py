"""Faults planted into real deploys: no bundle comes of them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import trtship
from deployed import BLUE, COLOURS, GREEN, RED, edit_graph, paint
from trtship.bundle.bundle import Bundle
from trtship.bundle.debug import debug_bundle
from trtship.deployment import failed, job
from trtship.deployment.stages import plan, precision
from trtship.errors import BuildError, ExportMismatchError, GateError, OutputError, SourceError, SpecError
from trtship.spec import as_plain

FROZEN = """
import torch

class Frozen(torch.nn.Module):
    trtship_inputs = ["input=Bx4x6"]

    def forward(self, x):
        rows = x.reshape(-1, 6)
        return rows.reshape(int(rows.shape[0] / 4), 4, 6).sum(2)

def frozen():
    return Frozen()
"""


def swap_rows(model: onnx.ModelProto) -> None:
    """Every weight matrix with its first two rows exchanged: a graph that runs, and is another model."""
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim == 2 and len(array) > 1 and array.dtype.kind == "f":
            array = np.concatenate([array[1::-1], array[2:]])
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "colours.py").write_text(COLOURS)
    return f"{tmp_path / 'colours.py'}:colours"


def deploy(source: str, tmp_path: Path, **options: Any) -> Any:
    options = {"exporter": "torchscript", "batch": "1:2:4", **options}
    return trtship.deploy(source, tmp_path / "out" / "b", **options)


@pytest.fixture
def faulty_precision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The precision stage exchanges two rows of every weight; its results stay out of the other tests' cache."""
    honest = precision.to_precision

    def faulty(source: Path, target: Path, *arguments: Any, **options: Any) -> Any:
        report = honest(source, target, *arguments, **options)
        edit_graph(target, swap_rows)
        return report

    monkeypatch.setenv("TRTSHIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "to_precision", faulty)


@pytest.mark.usefixtures("faulty_precision")
def test_a_wrong_weight_in_the_graph_that_the_plan_is_built_from_fails_its_gate(source: str, tmp_path: Path) -> None:
    with pytest.raises(GateError, match="graph fp16, rel_l2") as caught:
        deploy(source, tmp_path, precision="fp16")
    assert "over the bound" in caught.value.why
    evidence: Any = caught.value.as_dict()["evidence"]
    verdicts = {v["subject"]: v["state"] for v in evidence if v["gate"] == "rel_l2"}
    assert verdicts["graph fp16"] == "failed"
    assert verdicts["graph fp32"] == "passed"
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("faulty_precision")
def test_a_bundle_that_failed_is_kept_where_it_was_asked_for_and_debug_finds_the_node(
    source: str, tmp_path: Path
) -> None:
    kept = tmp_path / "kept" / "b"
    with pytest.raises(GateError, match=f"trtship debug {kept}") as caught:
        deploy(source, tmp_path, precision="fp16", keep_failed=kept)
    assert type(caught.value) is GateError
    assert not (tmp_path / "out").exists()
    bundle = Bundle.open(kept)
    assert as_plain(bundle.manifest.verdicts) == caught.value.evidence
    assert "failed" in (kept / "report.html").read_text()
    wrong = debug_bundle(kept).wrong
    assert wrong is not None
    assert (wrong.subject, wrong.state) == ("graph fp16", "wrong")
    assert wrong.located is not None
    with pytest.raises(OutputError, match="--force replaces it"):
        deploy(source, tmp_path, precision="fp16", keep_failed=kept)
    with pytest.raises(GateError):
        deploy(source, tmp_path, precision="fp16", keep_failed=kept, force=True)
    assert {path.name for path in kept.parent.iterdir()} == {"b"}


def test_where_a_failed_bundle_would_go_is_checked_first(source: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(SpecError, match="do not go together"):
        deploy(source, tmp_path, precision="auto", max_rel_l2=0.1, keep_failed=tmp_path / "kept")
    for place in ("out/b", "out", "out/b/failed"):
        with pytest.raises(SpecError, match="one is in the other"):
            deploy(source, tmp_path, keep_failed=tmp_path / place)
    with pytest.raises(OutputError, match="is no bundle"):
        deploy(source, tmp_path, keep_failed=tmp_path / "mine", force=True)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(OutputError, match="is no bundle") as caught:
        deploy(source, tmp_path, keep_failed=tmp_path / "mine" / "thesis.txt")
    assert "--keep-failed" in caught.value.do


@pytest.mark.usefixtures("faulty_precision")
@pytest.mark.parametrize("full", [False, True])
def test_a_failed_bundle_that_cannot_be_kept_is_a_failed_gate_all_the_same(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """Something came to be there meanwhile, which is left as it is; or the disk is full."""
    kept = tmp_path / "kept"
    check = job.check_bundle

    def meanwhile(bundle: Bundle, **options: Any) -> Any:
        if not full:
            kept.mkdir()
            (kept / "thesis.txt").write_text("years")
        return check(bundle, **options)

    def no_space(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", target)

    monkeypatch.setattr(job, "check_bundle", meanwhile)
    if full:
        monkeypatch.setattr(failed, "copy2", no_space)
    with pytest.raises(GateError, match="graph fp16, rel_l2") as caught:
        deploy(source, tmp_path, precision="fp16", keep_failed=kept)
    assert caught.value.evidence
    assert ("No space left" in caught.value.do) == full
    assert "the bundle could not be kept" in caught.value.do
    assert not kept.exists() if full else [path.name for path in kept.iterdir()] == ["thesis.txt"]


def test_a_deploy_that_passes_keeps_nothing_else(source: str, tmp_path: Path) -> None:
    deploy(source, tmp_path, precision="fp16", keep_failed=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@pytest.mark.usefixtures("faulty_precision")
def test_a_failure_is_not_remembered(source: str, tmp_path: Path) -> None:
    """It may have been that process's: its memory, or what it multiplied in."""
    with pytest.raises(GateError):
        deploy(source, tmp_path, precision="fp16")
    entries = {path.parents[1].name for path in (tmp_path / "cache").rglob("entry.json")}
    assert "build" in entries
    assert "verify" not in entries


@pytest.mark.usefixtures("faulty_precision")
def test_it_fails_in_top1_as_well(source: str, tmp_path: Path) -> None:
    pictures = paint(tmp_path / "pictures", {"red": [RED], "green": [GREEN], "blue": [BLUE]})
    with pytest.raises(GateError, match=r"top-1 fell by 66\.67 points"):
        deploy(source, tmp_path, precision="fp16", eval_dir=pictures, max_drop=60)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("faulty_precision")
def test_a_failed_deploy_leaves_the_bundle_that_stood_there(
    source: str, tmp_path: Path, deployed: Callable[[str, str], Path]
) -> None:
    import shutil

    shutil.copytree(deployed("colours", "fp32"), tmp_path / "out" / "b")
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    with pytest.raises(GateError):
        deploy(source, tmp_path, precision="fp16", force=True)
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before


def test_an_overflow_in_half_precision_fails_its_gate(tmp_path: Path) -> None:
    """Sums around 1e6 are beyond fp16, whose largest number is 65504; bf16 holds them."""
    (tmp_path / "large.py").write_text(
        FROZEN.replace("x.reshape(-1, 6)", "x.reshape(-1, 24)").replace(
            "rows.reshape(int(rows.shape[0] / 4), 4, 6).sum(2)", "torch.relu(rows * 1000.0) * 1000.0"
        )
    )
    source = f"{tmp_path / 'large.py'}:frozen"
    with pytest.raises(GateError, match="NaN or Inf in logits"):
        deploy(source, tmp_path, precision="fp16")
    assert not (tmp_path / "out").exists()
    assert {v.state for v in deploy(source, tmp_path, precision="bf16").verdicts} <= {"passed", "not run"}


def test_weights_beyond_half_precision_fail_their_gate(tmp_path: Path) -> None:
    head, pixels = "self.head(torch.relu(x).mean((2, 3)))", "self.head(torch.relu(x).permute(0, 2, 3, 1)).mean((1, 2))"
    assert head in COLOURS
    (tmp_path / "pixels.py").write_text(COLOURS.replace(head, pixels))
    with pytest.raises(GateError, match="over the bound"):
        deploy(f"{tmp_path / 'pixels.py'}:colours", tmp_path, precision="fp16", model_args=[("scale", "1e5")])
    assert not (tmp_path / "out").exists()


def test_weights_beyond_half_precision_in_the_head_are_what_they_are(source: str, tmp_path: Path) -> None:
    """It is in fp32."""
    found = deploy(source, tmp_path, precision="fp16", model_args=[("scale", "1e5")])
    assert {v.state for v in found.verdicts} <= {"passed", "not run"}


def test_a_frozen_batch_that_cannot_be_mended_never_becomes_a_bundle(tmp_path: Path) -> None:
    """Each row is divided by its number as it is traced, and multiplied by it as it is: by 1, in PyTorch."""
    numbers = "torch.tensor([[1.0 + i] for i in range(int(rows.shape[0] / 4))])"
    ones = f"{numbers} / torch.arange(1, x.shape[0] + 1)[:, None]"
    (tmp_path / "frozen.py").write_text(FROZEN.replace(".sum(2)", f".sum(2) * ({ones})"))
    with pytest.raises(ExportMismatchError):
        deploy(f"{tmp_path / 'frozen.py'}:frozen", tmp_path, exporter="torchscript")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("exporter", [None, "dynamo", "torchscript"])
def test_a_model_whose_rows_depend_on_the_batch_is_told_before_any_exporter_runs(
    exporter: str | None, tmp_path: Path
) -> None:
    (tmp_path / "frozen.py").write_text(FROZEN.replace(".sum(2)", ".sum(2) * int(rows.shape[0] / 4)"))
    with pytest.raises(SourceError, match="only the number of rows matters"):
        deploy(f"{tmp_path / 'frozen.py'}:frozen", tmp_path, exporter=exporter)
    assert not (tmp_path / "out").exists()


def test_what_the_library_raises_midway_leaves_nothing(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise BuildError("no plan")

    monkeypatch.setenv("TRTSHIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plan, "plan_apart", broken)
    with pytest.raises(BuildError):
        deploy(source, tmp_path)
    assert not (tmp_path / "out").exists()
    assert not [p for p in (tmp_path / "cache").rglob("*") if ".partial" in p.name]
    assert not list((tmp_path / "cache").rglob("build/*/entry.json"))


def test_a_gate_that_fp32_itself_does_not_meet_is_what_the_advice_is_about(source: str, tmp_path: Path) -> None:
    with pytest.raises(GateError) as caught:
        deploy(source, tmp_path, precision="fp16", max_rel_l2=1e-12)
    assert caught.value.do.startswith("loosen --max-rel-l2: the graph in fp32 does not meet it either; --keep-failed")
    with pytest.raises(GateError) as caught:
        deploy(source, tmp_path, precision="fp16", max_rel_l2=1e-6)
    assert caught.value.do.startswith("try --precision bf16 or fp32")
