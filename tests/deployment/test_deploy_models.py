"""Small models of every library, deployed on the CPU: the graphs pass, the plan waits for a GPU, the bundle runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import trtship
from trtship.bundle import Bundle
from trtship.gpu import list_gpus
from trtship.verify import all_probes

PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
V2 = (("img_size", "32"), ("embed_dim", "16"), ("depths", "[1,1]"), ("num_heads", "[1,2]"), ("window_size", "4"))
CONVNEXT = (("dims", "[8,8,8,8]"), ("depths", "[1,1,1,1]"), ("num_classes", "5"))
TORCHVISION = """
from functools import partial
from torch import nn
from torchvision.models.swin_transformer import *
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlock, SwinTransformerBlockV2

SMALL = dict(patch_size=[4, 4], embed_dim=16, depths=[1, 1], num_heads=[1, 2], window_size=[4, 4], num_classes=5)

def v1():
    model = SwinTransformer(**SMALL)
    model.trtship_inputs = ["input=Bx3x32x32"]
    return model

def v2():
    model = SwinTransformer(**SMALL, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2)
    model.trtship_inputs = ["input=Bx3x32x32"]
    return model
"""


def assert_deployed(folder: Path, *, precision: str, classes: int, size: int) -> Bundle:
    """Every graph passed, the plan is there and was not run, and the bundle runs arrays and pictures."""
    bundle = Bundle.open(folder)
    verdicts = {(v.subject, v.gate): v for v in bundle.manifest.verdicts}
    graphs = {"fp32", precision} - {"tf32"}
    of_graphs = ("rel_l2", *(probe.name for probe in all_probes() if not probe.of_memory and not probe.of_sizes))
    of_plan = ("rel_l2", *(probe.name for probe in all_probes() if not probe.of_sizes))
    assert verdicts.keys() == {(f"graph {g}", gate) for g in graphs for gate in of_graphs} | {
        ("plan", gate) for gate in of_plan
    }
    for (subject, gate), verdict in verdicts.items():
        if subject == "plan" and not list_gpus():
            assert (verdict.state, verdict.measures) == ("not run", ())
            assert "no NVIDIA GPU" in verdict.reason
        else:
            assert verdict.state == "passed", verdict.reason
            if gate == "rel_l2":
                assert {m.sizes["B"] for m in verdict.measures} == set(bundle.manifest.ranges["B"].sizes_to_check)
    assert (folder / bundle.manifest.plan).stat().st_size > 1000
    with trtship.load(folder, runtime="onnxruntime") as session:
        images = np.random.default_rng(0).standard_normal((3, 3, size, size), dtype=np.float32)
        logits = session(images)
        assert logits.shape == (3, classes)
        assert np.isfinite(logits).all()
        if bundle.manifest.preprocess is not None:
            assert session(Image.new("RGB", (50, 40), (200, 30, 90))).shape == (1, classes)
    return bundle


@pytest.mark.parametrize("precision", PRECISIONS)
def test_timm_swin_in_every_precision(deployed: Callable[[str, str], Path], precision: str) -> None:
    bundle = assert_deployed(deployed("swin", precision), precision=precision, classes=10, size=56)
    assert bundle.evidence("export")["export"]["exporter"] == "dynamo"
    assert bundle.evidence("simplify")["kept"] == "simplified"


def test_the_measured_error_is_the_precisions_own(deployed: Callable[[str, str], Path]) -> None:
    """Each graph is really in its precision: its error is of the size of its rounding, neither less nor more."""
    worst = {}
    for precision in PRECISIONS:
        found = Bundle.open(deployed("swin", precision)).manifest.verdicts
        verdicts = {v.subject: v for v in found if v.gate == "rel_l2"}
        worst[precision] = verdicts.get(f"graph {precision}", verdicts["graph fp32"]).worst
    assert worst["fp32"] == worst["tf32"] < 2**-18
    assert 2**-14 < worst["fp16"] < 2**-7
    assert 4 < worst["bf16"] / worst["fp16"] < 16  # three bits of significand less


def test_the_graph_in_the_bundle_is_the_model(deployed: Callable[[str, str], Path]) -> None:
    from graphs import pictures, small_model

    x = pictures("swin", 4)
    with torch.no_grad():
        expected = small_model("swin")(x)
    with trtship.load(deployed("swin", "fp32"), runtime="onnxruntime") as session:
        torch.testing.assert_close(session(x), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("source", "options", "classes", "size"),
    [
        ("timm/swinv2_tiny_window8_256", {"model_args": (*V2, ("num_classes", "5"))}, 5, 32),
        ("timm/convnext_atto", {"model_args": CONVNEXT, "inputs": ["input=Bx3x32x32"], "exporter": None}, 5, 32),
        (
            "torchvision/shufflenet_v2_x0_5",
            {"model_args": (("num_classes", "7"),), "inputs": ["input=Bx3x64x64"]},
            7,
            64,
        ),
    ],
)
def test_models_by_name(source: str, options: dict[str, Any], classes: int, size: int, tmp_path: Path) -> None:
    options = {"exporter": "torchscript", **options}
    trtship.deploy(source, tmp_path / "b", random_weights=True, precision="fp16", batch="1:2:3", **options)
    bundle = assert_deployed(tmp_path / "b", precision="fp16", classes=classes, size=size)
    assert bundle.evidence("export")["export"]["exporter"] == (options["exporter"] or "dynamo")
    assert bundle.evidence("export")["export"]["fell_back"] == ""


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_torchvision_swin(version: str, tmp_path: Path) -> None:
    (tmp_path / "swins.py").write_text(TORCHVISION)
    source = f"{tmp_path / 'swins.py'}:{version}"
    trtship.deploy(source, tmp_path / "b", precision="bf16", batch="1:2:3", exporter="torchscript")
    assert_deployed(tmp_path / "b", precision="bf16", classes=5, size=32)


def transformers_folder(folder: Path, kind: str) -> str:
    config = {"Swin": transformers.SwinConfig, "Swinv2": transformers.Swinv2Config}[kind]
    config(
        architectures=[f"{kind}ForImageClassification"],
        image_size=56,
        patch_size=4,
        embed_dim=16,
        depths=[1, 1],
        num_heads=[1, 2],
        window_size=7,
        num_labels=4,
    ).save_pretrained(folder)
    return f"transformers/{folder}"


@pytest.mark.parametrize(("kind", "exporter"), [("Swin", None), ("Swinv2", "torchscript")])
def test_transformers_swin(kind: str, exporter: str | None, tmp_path: Path) -> None:
    source = transformers_folder(tmp_path / "model", kind)
    trtship.deploy(source, tmp_path / "b", random_weights=True, batch="1:2:3", exporter=exporter)
    assert_deployed(tmp_path / "b", precision="fp16", classes=4, size=56)
