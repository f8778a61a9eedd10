"""Bundles for tests: small real models, each deployed once a test run, and ways to tamper with one."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx
from PIL import Image

import trtship
from graphs import small_model
from trtship.bundle import Bundle
from trtship.bundle.bundle import write_manifest

SWIN = (("img_size", "56"), ("embed_dim", "24"), ("depths", "[2,2]"), ("num_heads", "[2,4]"), ("num_classes", "10"))
COLOURS = '''
import torch

class Colours(torch.nn.Module):
    """Red, green or blue: the logits are the means of the channels, by way of a product with `head`."""

    trtship_inputs = ["input=Bx3x8x8"]
    trtship_labels = ["red", "green", "blue"]
    trtship_preprocess = {"mode": "RGB", "exif_transpose": False, "steps": [
        {"op": "resize", "height": 8, "width": 8, "fit": "exact", "interpolation": "bilinear"},
        {"op": "rescale", "factor": 1 / 255},
    ]}

    def __init__(self, scale):
        super().__init__()
        self.head = torch.nn.Linear(3, 3)
        with torch.no_grad():
            self.head.weight.copy_(scale * torch.eye(3))
            self.head.bias.zero_()

    def forward(self, x):
        return self.head(torch.relu(x).mean((2, 3)))

def colours(scale=1.0):
    return Colours(scale)
'''
"""A source whose every prediction can be told by hand."""

RED, GREEN, BLUE = (250, 20, 30), (20, 240, 10), (5, 60, 255)


def paint(folder: Path, classes: dict[str, list[tuple[int, int, int]]]) -> Path:
    """An ImageFolder of plain pictures, each colour under the class that it is said to be."""
    for name, colours in classes.items():
        (folder / name).mkdir(parents=True)
        for index, colour in enumerate(colours):
            Image.new("RGB", (12, 10), colour).save(folder / name / f"{index}.png")
    return folder


def deploy_swin(folder: Path, precision: str) -> Path:
    """timm's Swin with the weights of `graphs.small_model`, by the dynamo exporter."""
    from safetensors.torch import save_file

    weights = folder / "swin.safetensors"
    if not weights.exists():
        save_file(small_model("swin").state_dict(), weights)
    trtship.deploy(
        "timm/swin_tiny_patch4_window7_224",
        folder / f"swin-{precision}.trtship",
        checkpoint=weights,
        model_args=SWIN,
        precision=precision,
        batch="1:2:4",
        exporter="dynamo",
    )
    return folder / f"swin-{precision}.trtship"


def deploy_colours(folder: Path, precision: str) -> Path:
    """The colours, evaluated on seven pictures of which five are what their folders say; batches of 2 to 4."""
    source = folder / "colours.py"
    source.write_text(COLOURS)
    pictures = paint(
        folder / f"pictures-{precision}",
        {"red": [RED, RED, GREEN], "green": [GREEN, GREEN], "blue": [BLUE, RED]},
    )
    trtship.deploy(
        f"{source}:colours",
        folder / f"colours-{precision}.trtship",
        precision=precision,
        batch="2:3:4",
        exporter="torchscript",
        eval_dir=pictures,
    )
    return folder / f"colours-{precision}.trtship"


def deploy_digits(folder: Path, precision: str) -> Path:
    """The example's trained Swin, by the TorchScript exporter."""
    digits = Path(__file__).parents[1] / "examples" / "digits"
    trtship.deploy(
        f"{digits}/model.py:digits_swin",
        folder / f"digits-{precision}.trtship",
        checkpoint=digits / "digits.safetensors",
        precision=precision,
        batch="1:2:4",
        exporter="torchscript",
    )
    return folder / f"digits-{precision}.trtship"


MAKERS: dict[str, Callable[[Path, str], Path]] = {
    "swin": deploy_swin,
    "colours": deploy_colours,
    "digits": deploy_digits,
}


def copy_of(bundle: Path, folder: Path) -> Path:
    """A copy to tamper with."""
    return Path(shutil.copytree(bundle, folder / "copy.trtship"))


def reseal(folder: Path, **changes: Any) -> Bundle:
    """The manifest with these fields, its hashes those of the files as they are now: a bundle made by somebody else."""
    plain = msgspec.json.decode((folder / "manifest.json").read_bytes())
    plain["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in plain["files"]}
    manifest = msgspec.convert(plain, trtship.bundle.Manifest, strict=False)
    write_manifest(folder, msgspec.structs.replace(manifest, **changes))
    return Bundle.open(folder)


def edit_graph(path: Path, edit: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a fresh interpreter; its stdout and stderr are in the error where it fails."""
    import os

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done
