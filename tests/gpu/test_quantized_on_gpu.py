"""Plans in 8 bits on a GPU: right, and what they take beside fp16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trtship
from digits import HERE
from trtship.bundle import Bundle
from trtship.deployment.quantized import FP8_CAPABILITY
from trtship.gpu import list_gpus
from trtship.measure import measure
from trtship.passes import emulate_low
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import as_plain

SCOPES = ("fused", "all")
Deployed = Callable[[str, str], Path]


def has_fp8() -> bool:
    gpus = list_gpus()
    return bool(gpus) and tuple(map(int, gpus[0].compute_capability.split("."))) >= FP8_CAPABILITY


@pytest.fixture(scope="module")
def digits(gpu_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    folder = tmp_path_factory.mktemp("digits")

    def deployed(precision: str, scope: str) -> Path:
        if precision == "fp8" and not has_fp8():
            pytest.skip("this GPU has no fp8")
        target = folder / f"{precision}-{scope}.trtship"
        if not target.exists():
            trtship.deploy(
                f"{HERE / 'model.py'}:digits_swin",
                target,
                checkpoint=HERE / "digits.safetensors",
                precision=precision,
                quantize=scope,
                batch="1:8:32",
                eval_dir=HERE / "pictures",
            )
        return target

    return deployed


@pytest.mark.parametrize("scope", [*SCOPES, "weights"])
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_the_plan_passes_its_gates(
    digits: Deployed, precision: str, scope: str, record_property: Callable[[str, object], None]
) -> None:
    verdicts = {(v.subject, v.gate): v for v in Bundle.open(digits(precision, scope)).manifest.verdicts}
    record_property("verdicts", [as_plain(v) for v in verdicts.values()])
    for gate in ("rel_l2", "top1_drop"):
        assert verdicts["plan", gate].state == "passed", verdicts["plan", gate].reason


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_the_plan_is_as_near_to_the_emulated_graph_as_to_the_original(
    digits: Deployed, precision: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Rounding moves numbers over the edges of steps, and no further than quantization itself moved them."""
    bundle = Bundle.open(digits(precision, "all"))
    emulate_low(bundle.path(bundle.manifest.precision_graph), tmp_path / "emulated.onnx")
    reference = bundle.reference()
    feeds, _ = reference.at(8)
    with OnnxRuntimeSession(tmp_path / "emulated.onnx") as session:
        emulated = next(iter(session.infer(feeds).values()))
    with trtship.load(bundle.folder) as plan:
        found: Any = next(iter(plan.infer(feeds).values()))
    assert np.isfinite(found).all()
    distance = measure(emulated, found, output="logits", sizes={}).rel_l2
    record_property("distance", distance)
    assert distance is not None
    assert distance <= bundle.manifest.bounds["plan"].value
