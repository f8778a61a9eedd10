"""Other models on a GPU, and the numbers that break naive fp16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import trtship
from trtship.spec import as_plain

MODELS = ("timm/swinv2_tiny_window8_256", "timm/convnext_atto", "torchvision/swin_t")
LARGE = """
import torch

class Large(torch.nn.Module):
    '''Activations of some 10^4: representable in fp16, their squares are not.'''
    trtship_inputs = ["input=Bx3x16x16"]

    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(768, 256)
        self.norm = torch.nn.LayerNorm(256)
        self.scores = torch.nn.Linear(256, 64)
        self.down = torch.nn.Linear(64, 10)
        with torch.no_grad():
            self.up.weight.mul_(4000)
            self.scores.weight.mul_(2)

    def forward(self, input):
        x = self.norm(self.up(input.flatten(1)))
        return self.down(torch.softmax(self.scores(x), dim=-1) * 16)

def large():
    torch.manual_seed(0)
    return Large()
"""


@pytest.mark.parametrize("source", MODELS)
def test_the_fp16_plan_passes_its_gate(
    gpu_cache: Path, source: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    result = trtship.deploy(source, tmp_path / "b.trtship", random_weights=True, batch="1:4:8", exporter="torchscript")
    record_property("verdicts", [as_plain(v) for v in result.verdicts])
    assert {v.state for v in result.verdicts if v.subject == "plan"} == {"passed"}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_layernorm_and_softmax_statistics_do_not_overflow(gpu_cache: Path, precision: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(LARGE)
    result = trtship.deploy(f"{tmp_path}/model.py:large", tmp_path / "b.trtship", precision=precision, batch="1:4:8")
    assert {v.state for v in result.verdicts if v.subject == "plan"} == {"passed"}


def test_the_digits_plan_reads_the_pictures_as_the_original_does(gpu_cache: Path, tmp_path: Path) -> None:
    digits = Path(__file__).parents[2] / "examples" / "digits"
    result = trtship.deploy(
        f"{digits}/model.py:digits_swin",
        tmp_path / "digits.trtship",
        checkpoint=digits / "digits.safetensors",
        eval_dir=digits / "pictures",
        io_dtype="float16",
    )
    found = {(v.subject, v.gate): v for v in result.verdicts}["plan", "top1_drop"]
    assert found.state == "passed"
    assert found.evaluation is not None
    assert found.evaluation.pictures == 60
    with trtship.load(result.bundle) as session:
        assert session.classify(sorted((digits / "pictures" / "7").iterdir())[0], top=1)[0][0].label == "7"
