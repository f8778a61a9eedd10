"""Models with dynamic sizes beside the batch, from the source to the bundle, and to what debug finds."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import trtship
from graphs import written
from trtship.bundle import Bundle
from trtship.bundle.debug import debug_bundle
from trtship.deployment.search.sensitivity import Meter
from trtship.errors import GateError
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Precision, ShapeRange
from trtship.verify.reference import make_reference

ATTENTION = '''
import torch

class LinAttn(torch.nn.Module):
    """Linear attention over all patches, as in EfficientViT: sums over H * W / 16 tokens."""

    trtship_inputs = ["image=Bx3xHxW"]

    def __init__(self, d=32):
        super().__init__()
        torch.manual_seed(0)
        self.e, self.qkv = torch.nn.Conv2d(3, d, 4, 4), torch.nn.Linear(d, 3 * d)
        self.o = torch.nn.Conv2d(d, 5, 1)
        torch.nn.init.constant_(self.qkv.bias, 1.0)

    def forward(self, image):
        x = self.e(image)
        b, d, h, w = x.shape
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, -1)
        q, k = q.relu(), k.relu()
        z = q @ (k.transpose(1, 2) @ v) / (q @ k.sum(1).unsqueeze(2))
        return self.o(z.transpose(1, 2).reshape(b, d, h, w) + x)
'''


def test_a_model_that_overflows_at_max_is_refused_and_debug_finds_the_node_at_that_size(tmp_path: Path) -> None:
    (tmp_path / "lin.py").write_text(ATTENTION)
    source, sizes = f"{tmp_path / 'lin.py'}:LinAttn", ["H=32:64:288", "W=32:64:288"]
    kept = tmp_path / "kept"
    with pytest.raises(GateError, match="graph fp16, rel_l2: NaN or Inf in output at B=1, H=288, W=288"):
        trtship.deploy(source, tmp_path / "b", precision="fp16", batch="1:2:4", sizes=sizes, keep_failed=kept)
    bundle = Bundle.open(kept)
    verdicts = {(v.subject, v.gate): v for v in bundle.manifest.verdicts}
    assert verdicts["graph fp32", "rel_l2"].state == "passed"
    usual = [m for m in verdicts["graph fp16", "rel_l2"].measures if m.sizes["H"] == m.sizes["W"] == 64]
    assert len(usual) == 4
    assert all(m.finite for m in usual)
    report = debug_bundle(bundle)
    assert report.wrong is not None
    assert report.wrong.located is not None
    bad = [m.sizes for m in verdicts["graph fp16", "rel_l2"].measures if not m.finite]
    assert report.wrong.subject == "graph fp16"
    assert report.wrong.case in {f"the reference rows, B={s['B']}, H={s['H']}, W={s['W']}" for s in bad}
    assert report.wrong.located.operator == "MatMul"


POOLED = """
import torch

class Pooled(torch.nn.Module):
    trtship_inputs = ["image=Bx3xHxW"]

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = torch.nn.Conv2d(3, 8, 4, stride=4), torch.nn.Linear(8, 20)

    def forward(self, image):
        return self.head(torch.relu(self.conv(image)).mean((2, 3)))
"""


def test_debug_of_a_right_bundle_with_dynamic_sizes_finds_it_right(tmp_path: Path) -> None:
    (tmp_path / "pooled.py").write_text(POOLED)
    source, sizes = f"{tmp_path / 'pooled.py'}:Pooled", ["H=32:32:34", "W=32:32:32"]
    trtship.deploy(source, tmp_path / "b", precision="fp16", batch="1:2:3", sizes=sizes)
    bundle = Bundle.open(tmp_path / "b")
    assert {other.sizes["H"] for other in bundle.reference().others} == {33, 34}
    compared = next(v for v in bundle.manifest.verdicts if (v.subject, v.gate) == ("graph fp16", "rel_l2"))
    assert {m.sizes["H"] for m in compared.measures} == {32, 33, 34}
    assert compared.bound is not None
    assert set(compared.bound.sizes) == {"H=33 W=32", "H=34 W=32"}
    assert {f.state for f in debug_bundle(bundle).findings} <= {"right", "not run"}


def test_the_search_for_a_mixture_sees_what_overflows_at_the_largest_sizes_alone(tmp_path: Path) -> None:
    body = """(float[B, L, 8] x) => (float[B, 8, 8] y) {
        k = Mul(x, scale)
        t = Transpose<perm = [0, 2, 1]>(k)
        s = MatMul(t, k)
        y = Div(s, scale)
    }"""
    source = written(tmp_path / "a.onnx", body, scale=np.array(8, np.float32))
    ranges = {"B": ShapeRange(min=1, opt=2, max=4), "L": ShapeRange(min=4, opt=16, max=4096)}
    with OnnxRuntimeSession(source) as session:
        usual = make_reference(session, sizes={"L": 16})
        every = make_reference(session, sizes={"L": 16}, ranges=ranges)
    for reference, overflows in ((usual, False), (every, True)):
        with closing(Meter(source, Precision.FP16, reference)) as meter:
            assert (meter.error(meter.nodes) == np.inf) is overflows
            assert meter.error(()) < 1e-5
