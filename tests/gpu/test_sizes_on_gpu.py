"""Plans with other dynamic sizes than the batch, at the sizes that they promise, on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import trtship
from trtship.errors import GateError, InputError
from trtship.spec import as_plain

MODELS = '''
import torch
from torch import nn


class Fully(nn.Module):
    """Convolutions, a norm, and a Gram matrix: products that are summed over all places."""
    trtship_inputs = ["image=Bx3xHxW"]

    def __init__(self, gain=1.0, step=None):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 8, 3, 1, 1)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Conv2d(8, 5, 1)
        self.gain, self.step = gain, step

    def forward(self, image):
        x = self.b(torch.relu(self.norm(self.a(image))))
        y = x.flatten(2) * self.gain
        gram = y @ y.transpose(1, 2)
        x = x + (gram / self.gain**2 / 1000).mean(2)[:, :, None, None]
        if self.step and image.shape[2] % self.step:
            x = x.flip(3)
        return self.head(x)


def fully(): return Fully()
def overflows(): return Fully(gain=7.0)
def rule(): return Fully(step=4)
'''
SIZES = ("H=16:32:64", "W=16:32:48")


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "fully.py").write_text(MODELS)
    return f"{tmp_path}/fully.py"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_plan_passes_at_the_ends_of_its_sizes_and_beside_them(
    gpu_cache: Path, source: str, precision: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    result = trtship.deploy(f"{source}:fully", tmp_path / "b.trtship", precision=precision, batch="1:2:4", sizes=SIZES)
    plan = [v for v in result.verdicts if v.subject == "plan"]
    record_property("verdicts", [as_plain(v) for v in plan])
    assert {v.gate: v.state for v in plan if v.state != "passed"} == {}
    compared = next(v for v in plan if v.gate == "rel_l2")
    tried = {(m.sizes["H"], m.sizes["W"]) for m in compared.measures}
    assert {(n, 32) for n in (16, 17, 63, 64)} <= tried
    assert {(32, n) for n in (16, 17, 47, 48)} <= tried
    assert {(16, 16), (64, 48), (17, 17), (63, 47)} <= tried
    module, rng = _module(tmp_path), np.random.default_rng(0)
    with trtship.load(result.bundle) as session:
        assert "the bundle's own plan" in session.runtime
        for _ in range(12):
            shape = (int(rng.integers(1, 5)), 3, int(rng.integers(16, 65)), int(rng.integers(16, 49)))
            image = rng.standard_normal(shape, dtype=np.float32)
            with torch.no_grad():
                want = module.fully().eval()(torch.from_numpy(image)).numpy()
            off = np.linalg.norm(session(image) - want) / np.linalg.norm(want)
            assert compared.bound is not None
            assert off <= max(b.value for b in (compared.bound, *compared.bound.sizes.values())), shape


def test_a_plan_that_overflows_at_its_largest_size_alone_is_refused(
    gpu_cache: Path, source: str, tmp_path: Path
) -> None:
    with pytest.raises(GateError, match="H=64"):
        trtship.deploy(f"{source}:overflows", tmp_path / "b.trtship", precision="fp16", batch="1:2:4", sizes=SIZES)


def test_a_session_on_the_gpu_keeps_the_rules_on_sizes(gpu_cache: Path, source: str, tmp_path: Path) -> None:
    result = trtship.deploy(f"{source}:rule", tmp_path / "b.trtship", precision="fp32", batch="1:2:4", sizes=SIZES)
    module = _module(tmp_path)
    image = np.random.default_rng(0).standard_normal((2, 3, 36, 32), dtype=np.float32)
    with trtship.load(result.bundle) as session:
        assert "the bundle's own plan" in session.runtime
        with torch.no_grad():
            want = module.rule().eval()(torch.from_numpy(image)).numpy()
        assert np.linalg.norm(session(image) - want) <= 1e-4 * np.linalg.norm(want)
        with pytest.raises(InputError, match="H % 4"):
            session(image[:, :, :35])


def _module(folder: Path) -> object:
    import importlib.util

    spec = importlib.util.spec_from_file_location("fully", folder / "fully.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
