"""Deploys use the graph passes, and mend a batch that became a constant."""

from __future__ import annotations

import argparse
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import trtship
from graphs import ops
from trtship.bundle import Bundle
from trtship.cli import deploy as deploy_verb
from trtship.cli import inspect as inspect_verb
from trtship.cli.console import Console
from trtship.errors import ExportMismatchError, SpecError
from trtship.passes.patch_embedding import PatchEmbedding
from trtship.passes.precision import ToPrecision
from trtship.spec import Precision

SWINS = Path(__file__).parents[1] / "passes" / "swins.py"
FACTORIES = """

def healthy():
    torch.manual_seed(0)
    return seeded(Swin(depths=(2,), heads=(2,)))

def frozen():
    torch.manual_seed(0)
    return seeded(Swin(depths=(2,), heads=(2,), frozen=True))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.swin = Swin(depths=(2,), heads=(2,))

    def forward(self, image, weights):
        return self.swin(image) * weights.mean(1, keepdim=True)

def two():
    torch.manual_seed(0)
    return seeded(Two())

class Counts(Swin):
    def forward(self, x):
        return super().forward(x) * int(x.shape[0] / 1) / x.new_ones(x.shape[0]).sum()

def counts():
    torch.manual_seed(0)
    return seeded(Counts(depths=(1,), heads=(2,), frozen=True))
"""
IMAGE = "input=Bx3x32x32"
DONE = "2 windows into heads, 1 patch embedding"
"""What the passes do to a Swin of one stage and two blocks, among others that may come after them."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("swins") / "own_swins.py"
    path.write_text(SWINS.read_text() + FACTORIES)
    return path


def deploy(source: str | Path, output: Path, **options: Any) -> Bundle:
    options = {"precision": "fp32", "exporter": "torchscript", "batch": "1:2:4", **options}
    if ".py:" in str(source):
        options = {"inputs": [IMAGE], **options}
    trtship.deploy(str(source), output, **options)
    return Bundle.open(output)


@pytest.fixture(scope="module")
def bundle(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The healthy Swin in fp16, with all passes; to be read, not to be changed."""
    return deploy(f"{source}:healthy", tmp_path_factory.mktemp("healthy") / "b.trtship", precision="fp16")


def module_of(source: Path, name: str) -> torch.nn.Module:
    import importlib.util

    spec = importlib.util.spec_from_file_location("own_swins_of_the_test", source)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    made: torch.nn.Module = getattr(found, name)()
    return made


def assert_is_the_model(bundle: Bundle, module: torch.nn.Module) -> None:
    """At every batch of the profile, on inputs that no check of the deploy has seen."""
    with trtship.load(bundle, runtime="onnxruntime") as session, torch.no_grad():
        for batch in (1, 2, 3, 4):
            x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))
            np.testing.assert_allclose(session(x.numpy()), module(x).numpy(), rtol=0, atol=2e-5)


def test_the_plan_is_built_from_the_optimized_graph(bundle: Bundle) -> None:
    m = bundle.manifest
    report = bundle.evidence("optimize")
    assert report["summary"].startswith(DONE)
    assert {p["name"]: p["rewritten"] for p in report["passes"] if p["kept"]}["windows into heads"] == 2
    assert len(onnx.load(bundle.path(m.graph)).graph.node) == report["nodes_after"]
    assert "Conv" not in ops(bundle.path(m.graph))
    assert "Conv" not in ops(bundle.path(m.precision_graph))


def test_it_is_held_against_the_original_within_its_own_rounding(bundle: Bundle, tmp_path: Path) -> None:
    from trtship.graphs import load_graph, rounding_bound

    m = bundle.manifest
    states = {v.state for v in m.verdicts if v.subject in ("graph fp32", "graph fp16")}
    assert states == {"passed"}
    exact = rounding_bound(load_graph(bundle.path(m.graph)), Precision.FP32).bound
    low = rounding_bound(load_graph(bundle.path(m.precision_graph)), Precision.FP16).bound
    assert m.bounds["graph fp32"].value == 2 * exact
    assert m.bounds["plan"] == m.bounds["graph fp16"]
    assert low / 20 < m.bounds["plan"].value < low
    ToPrecision(Precision.FP16).apply(bundle.path(m.graph), tmp_path / "again.onnx")
    assert ops(tmp_path / "again.onnx") == ops(bundle.path(m.precision_graph))


def test_the_bundle_is_the_model(bundle: Bundle, source: Path) -> None:
    with trtship.load(bundle, runtime="onnxruntime") as session, torch.no_grad():
        x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))
        expected = module_of(source, "healthy")(x).numpy()
        found = session(x.numpy())
        assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < bundle.manifest.bounds["plan"].value


def test_the_batches_around_the_traced_one_are_proved(bundle: Bundle) -> None:
    assert {m["sizes"]["B"] for m in bundle.evidence("export")["export"]["checks"]} == {1, 2, 3, 4}
    proved = [p for p in bundle.evidence("optimize")["passes"] if p["kept"]]
    assert all(0 <= p["error"] <= p["bound"] for p in proved)


def test_no_passes_leave_the_simplified_graph(source: Path, tmp_path: Path) -> None:
    bundle = deploy(f"{source}:healthy", tmp_path / "b", passes="none")
    assert "evidence/optimize.json" not in bundle.manifest.files
    assert bundle.evidence("optimize") == {}
    assert bundle.manifest.recipe["passes"] == []
    assert "Conv" in ops(bundle.path(bundle.manifest.graph))


def test_other_passes_make_another_bundle(source: Path, tmp_path: Path) -> None:
    bundle = deploy(f"{source}:healthy", tmp_path / "b", passes="patch-embedding")
    assert bundle.evidence("optimize")["summary"] == "1 patch embedding"
    with pytest.raises(trtship.TrtshipError, match="is not what was asked for") as caught:
        deploy(f"{source}:healthy", tmp_path / "b", passes="none")
    assert 'passes: ["patch-embedding"] -> []' in caught.value.why


def test_an_unknown_pass_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no pass 'patch-embeding'") as caught:
        deploy(tmp_path / "nowhere.onnx", tmp_path / "b", passes="windows-into-heads,patch-embeding")
    assert "patch-embedding" in caught.value.why


def test_a_pass_that_crashes_is_rolled_back_and_the_deploy_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(*_: object) -> None:
        raise AssertionError

    monkeypatch.setenv("TRTSHIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(PatchEmbedding, "check", crash)
    bundle = deploy(f"{source}:healthy", tmp_path / "b", passes="patch-embedding,windows-into-heads")
    report = bundle.evidence("optimize")
    assert report["summary"] == "2 windows into heads, patch embedding rolled back"
    assert "Conv" in ops(bundle.path(bundle.manifest.graph))
    shown = inspected(bundle, capsys)
    assert "patch embedding was rolled back: it failed: AssertionError" in shown


def test_a_wrong_pass_is_rolled_back_and_the_deploy_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = PatchEmbedding.check

    def wrong(self: PatchEmbedding, anchor: Any, batches: Any) -> Any:
        found = right(self, anchor, batches)
        assert found is not None
        found.weight[0, 0] += 1
        return found

    monkeypatch.setenv("TRTSHIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(PatchEmbedding, "check", wrong)
    bundle = deploy(f"{source}:healthy", tmp_path / "b", passes="patch-embedding")
    (one,) = bundle.evidence("optimize")["passes"]
    assert (one["rewritten"], one["kept"], one["rolled_back"]) == (1, False, True)
    assert one["error"] > one["bound"]
    assert "Conv" in ops(bundle.path(bundle.manifest.graph))


def inspected(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> str:
    parser = argparse.ArgumentParser()
    inspect_verb.add_arguments(parser)
    capsys.readouterr()
    assert inspect_verb.run(parser.parse_args([str(bundle.folder)]), Console(quiet=True)) == 0
    return capsys.readouterr().out


def test_inspect_and_deploy_tell_what_was_done(
    bundle: Bundle, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert DONE in inspected(bundle, capsys)
    parser = argparse.ArgumentParser()
    deploy_verb.add_arguments(parser)
    options = ["--precision", "fp16", "--exporter", "torchscript", "--batch", "1:2:4", "--input", IMAGE]
    command = [f"{source}:healthy", *options, "-o", str(tmp_path / "b")]
    assert deploy_verb.run(parser.parse_args(command), Console(quiet=True)) == 0
    assert f"optimize: {DONE}" in capsys.readouterr().out
    again = parser.parse_args([*command[:-1], str(tmp_path / "c")])
    assert deploy_verb.run(again, Console(json=True, quiet=True)) == 0
    stages = {s["name"]: s for s in json.loads(capsys.readouterr().out)["stages"]}
    assert stages["optimize"]["cached"]
    assert stages["optimize"]["did"].startswith(DONE)


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_a_model_that_freezes_its_batch_is_mended(
    exporter: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = deploy(f"{source}:frozen", tmp_path / "b", exporter=exporter)
    export = bundle.evidence("export")["export"]
    assert export["exporter"] == exporter
    assert any("(Reshape)" in place for place in export["thawed"])
    assert bundle.evidence("optimize")["summary"].startswith(DONE)
    assert_is_the_model(bundle, module_of(source, "frozen"))
    assert "frozen batch made dynamic in" in " ".join(inspected(bundle, capsys).split())


def test_a_model_that_cannot_be_mended_is_refused_and_nothing_is_left(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportMismatchError, match="differs from PyTorch at B=1"):
        deploy(f"{source}:counts", tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_several_inputs(source: Path, tmp_path: Path) -> None:
    inputs = [IMAGE.replace("input", "image"), "weights=BxL"]
    bundle = deploy(f"{source}:two", tmp_path / "b", inputs=inputs, sizes=["L=3:4:6"])
    assert bundle.evidence("optimize")["summary"].startswith(DONE)


def test_a_fixed_batch(source: Path, tmp_path: Path) -> None:
    bundle = deploy(f"{source}:healthy", tmp_path / "b", inputs=["input=3x3x32x32"], batch=None)
    assert bundle.evidence("optimize")["summary"].startswith(DONE)


Exported = Callable[..., Path]


@pytest.fixture
def exported(source: Path, tmp_path: Path) -> Exported:
    """`exported("frozen", batch=1)`: the ONNX file of a factory as others export it, traced at a batch."""

    def make(name: str, *, batch: int, opset: int = 17, dynamic: bool = True) -> Path:
        path = tmp_path / f"{name}.onnx"
        axes = {"dynamic_axes": {"input": {0: "N"}, "logits": {0: "N"}}} if dynamic else {}
        names = {"input_names": ["input"], "output_names": ["logits"]}
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module_of(source, name),
                (torch.randn(batch, 3, 32, 32),),
                str(path),
                dynamo=False,
                opset_version=opset,
                **names,
                **axes,
            )
        return path

    return make


def test_a_graph_that_was_brought_frozen_at_one(exported: Exported, source: Path, tmp_path: Path) -> None:
    """Its own outputs at the reference's nine rows are wrong: those of the mended graph are the reference."""
    bundle = deploy(exported("frozen", batch=1), tmp_path / "b", exporter=None)
    assert len(bundle.evidence("export")["export"]["thawed"]) > 0
    assert_is_the_model(bundle, module_of(source, "frozen"))


def test_a_graph_of_which_nobody_can_tell_its_batch_is_refused_with_a_way_out(
    exported: Exported, source: Path, tmp_path: Path
) -> None:
    graph = exported("frozen", batch=4)
    with pytest.raises(ExportMismatchError, match="the graph is wrong at B=2") as caught:
        deploy(graph, tmp_path / "b", exporter=None)
    assert "in several ways" in caught.value.why
    assert "trtship optimize --traced N" in caught.value.do
    assert not (tmp_path / "b").exists()


def test_a_graph_with_a_fixed_batch_keeps_it_and_is_optimized(exported: Exported, source: Path, tmp_path: Path) -> None:
    bundle = deploy(exported("frozen", batch=3, dynamic=False), tmp_path / "b", exporter=None, batch=None)
    assert bundle.manifest.inputs[0].shape == (3, 3, 32, 32)
    assert bundle.evidence("export")["export"]["thawed"] == []
    assert bundle.evidence("optimize")["summary"].startswith(DONE)


def test_a_graph_of_opset_12(exported: Exported, source: Path, tmp_path: Path) -> None:
    bundle = deploy(exported("healthy", batch=1, opset=12), tmp_path / "b", exporter=None)
    assert bundle.evidence("optimize")["summary"].startswith(DONE)
    assert_is_the_model(bundle, module_of(source, "healthy"))


def test_a_graph_with_external_data(exported: Exported, source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "external"
    folder.mkdir()
    onnx.save(
        onnx.load(exported("healthy", batch=1)),
        folder / "in.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    bundle = deploy(folder / "in.onnx", tmp_path / "b", exporter=None)
    shutil.rmtree(folder)
    assert bundle.evidence("optimize")["summary"].startswith(DONE)
    assert_is_the_model(bundle, module_of(source, "healthy"))
