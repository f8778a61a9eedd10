"""Small models with positions, coordinates and sizes in them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn


def exported(module: nn.Module, args: tuple[Any, ...], path: Path, names: list[str]) -> Path:
    batch = torch.export.Dim("B")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            args,
            str(path),
            dynamo=True,
            dynamic_shapes=tuple({0: batch} for _ in args),
            input_names=names,
            output_names=["y"],
            verbose=False,
        )
    return path


class Steps(nn.Module):
    """A denoiser's step, 0 to 999, as sines and cosines."""

    def __init__(self, kind: torch.dtype = torch.int64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.out = nn.Linear(32, 8)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        freq = torch.exp(-math.log(10000.0) * torch.arange(16, dtype=torch.float32) / 16)
        angle = t.float() * freq
        return self.out(torch.cat([angle.cos(), angle.sin()], -1))


class Rotary(nn.Module):
    """Rotary embeddings as transformers writes them: positions times frequencies, by a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q = nn.Linear(16, 16)
        self.register_buffer("inverse", 1.0 / 10000 ** (torch.arange(8).float() / 8))

    def forward(self, x: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        q = self.q(x)
        freqs = (self.inverse[None, :, None].expand(x.shape[0], -1, 1) @ place[:, None, :].float()).transpose(1, 2)
        angle = torch.cat((freqs, freqs), -1)
        half = torch.cat((-q[..., 8:], q[..., :8]), -1)
        return q * angle.cos() + half * angle.sin()


UPSAMPLING: dict[str, Callable[[], nn.Module]] = {
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "bilinear": lambda: nn.Upsample(scale_factor=1.7, mode="bilinear"),
    "bilinear to the corners": lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    "bicubic": lambda: nn.Upsample(scale_factor=(1.5, 2.5), mode="bicubic"),
    "to a size": lambda: nn.Upsample(size=(13, 9), mode="bilinear"),
    "transposed convolution": lambda: nn.ConvTranspose2d(8, 8, 3, 2, 1),
    "pixel shuffle": lambda: nn.PixelShuffle(2),
}


def upsampling(how: str) -> nn.Module:
    """A convolution, the upsampling, a convolution."""
    torch.manual_seed(0)
    channels = 2 if how == "pixel shuffle" else 8
    return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), UPSAMPLING[how](), nn.Conv2d(channels, 2, 1))
