"""Small Swins for the passes' tests: the libraries' own, and one written the way the first implementation is.

That one, `Swin`, takes the window out of a batch as [B * windows, ...] and, where `frozen`, puts it back with a batch
size computed as a Python int, which exporters turn into a constant.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional


def split_windows(x: torch.Tensor, w: int) -> torch.Tensor:
    """[B, H, W, C] as [B * windows, w * w, C]."""
    b, h, v, c = x.shape
    return x.reshape(b, h // w, w, v // w, w, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, c)


def join_windows(x: torch.Tensor, w: int, h: int, v: int, *, frozen: bool) -> torch.Tensor:
    """The way back."""
    if not frozen:
        return x.reshape(-1, h // w, v // w, w, w, x.shape[-1]).permute(0, 1, 3, 2, 4, 5).reshape(-1, h, v, x.shape[-1])
    b = int(x.shape[0] / (h * v / w / w))
    return x.reshape(b, h // w, v // w, w, w, -1).permute(0, 1, 3, 2, 4, 5).reshape(b, h, v, -1)


def shift_mask(h: int, v: int, w: int, shift: int) -> torch.Tensor:
    """[windows, S, S]: -100 between tokens that only a roll brought together."""
    regions = torch.zeros(1, h, v, 1)
    for i, rows in enumerate((slice(-w), slice(-w, -shift), slice(-shift, None))):
        for j, columns in enumerate((slice(-w), slice(-w, -shift), slice(-shift, None))):
            regions[:, rows, columns] = 3 * i + j
    tokens = split_windows(regions, w).squeeze(-1)
    return (tokens[:, None] != tokens[:, :, None]) * -100.0


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, size: int, window: int, shift: int, *, cosine: bool, frozen: bool) -> None:
        super().__init__()
        self.heads, self.frozen = heads, frozen
        self.window = min(window, size)
        self.padded = -(-size // self.window) * self.window
        self.shift = shift if self.padded > self.window else 0
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        tokens = self.window**2
        self.bias = nn.Parameter(torch.randn(heads, tokens, tokens))
        self.logit_scale = nn.Parameter(torch.log(5 + 5 * torch.rand(heads, 1, 1))) if cosine else None
        mask = shift_mask(self.padded, self.padded, self.window, self.shift) if self.shift else None
        self.register_buffer("mask", mask)

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        n, s, c = x.shape
        q, k, v = self.qkv(x).reshape(n, s, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        if self.logit_scale is None:
            scores = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)
        else:
            scores = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).transpose(-2, -1)
            scores = scores * self.logit_scale.exp()
        scores = scores + self.bias[None]
        if self.mask is not None:
            windows = self.mask.shape[0]
            scores = scores.view(n // windows, windows, self.heads, s, s) + self.mask[None, :, None]
            scores = scores.view(-1, self.heads, s, s)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, s, c))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size, pad, shift = x.shape[1], self.padded - x.shape[1], self.shift
        y = functional.pad(self.norm1(x), (0, 0, 0, pad, 0, pad)) if pad else self.norm1(x)
        y = torch.roll(y, (-shift, -shift), (1, 2)) if shift else y
        y = self.attention(split_windows(y, self.window))
        y = join_windows(y, self.window, self.padded, self.padded, frozen=self.frozen)
        y = torch.roll(y, (shift, shift), (1, 2)) if shift else y
        y = y.reshape(x.shape[0], self.padded, self.padded, x.shape[-1])
        x = x + (y[:, :size, :size] if pad else y)
        return x + self.mlp(self.norm2(x))


class Swin(nn.Module):
    """`image`, `patch`, `window` are sides in pixels, pixels and tokens; each stage after the first merges 2 x 2."""

    def __init__(
        self,
        *,
        image: int = 32,
        patch: int = 4,
        window: int = 4,
        dim: int = 16,
        depths: tuple[int, ...] = (2, 2),
        heads: tuple[int, ...] = (2, 4),
        cosine: bool = False,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, dim, patch, patch)
        size, self.stages = image // patch, nn.ModuleList()
        for index, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            if index:
                size, dim = size // 2, dim * 2
            shifts = [(window // 2) * (number % 2) for number in range(depth)]
            blocks = [Block(dim, count, size, window, shift, cosine=cosine, frozen=frozen) for shift in shifts]
            merge = nn.Linear(2 * dim, dim) if index else None
            self.stages.append(nn.ModuleDict({"merge": merge or nn.Identity(), "blocks": nn.Sequential(*blocks)}))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).permute(0, 2, 3, 1)
        for index, stage in enumerate(self.stages):
            if index:
                quarters = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
                x = stage["merge"](torch.cat(quarters, -1))
            x = stage["blocks"](x)
        return self.head(self.norm(x).mean((1, 2)))


def _timm(name: str, size: int, **more: Any) -> Callable[[], tuple[nn.Module, int]]:
    def make() -> tuple[nn.Module, int]:
        import timm

        shape = {"img_size": size, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "num_classes": 5}
        return timm.create_model(name, **shape, **more), size

    return make


def _torchvision(size: int, window: int, *, v2: bool = False) -> Callable[[], tuple[nn.Module, int]]:
    def make() -> tuple[nn.Module, int]:
        from torchvision.models import swin_transformer as tv

        parts = {"block": tv.SwinTransformerBlockV2, "downsample_layer": tv.PatchMergingV2} if v2 else {}
        shape = {"patch_size": [4, 4], "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "num_classes": 5}
        return tv.SwinTransformer(window_size=[window, window], **shape, **parts), size

    return make


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x).logits


def _transformers(size: int, window: int, *, v2: bool = False) -> Callable[[], tuple[nn.Module, int]]:
    def make() -> tuple[nn.Module, int]:
        import transformers as hf

        config, model = (hf.Swinv2Config, hf.Swinv2ForImageClassification) if v2 else (
            hf.SwinConfig, hf.SwinForImageClassification
        )  # fmt: skip
        shape = {"image_size": size, "window_size": window, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]}
        return Logits(model(config(**shape, num_labels=5))), size

    return make


SWINS: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    "timm": _timm("swin_tiny_patch4_window7_224", 56),
    "timm V2": _timm("swinv2_tiny_window8_256", 64),
    "timm V2 CR": _timm("swinv2_cr_tiny_224", 64, window_size=8),
    "torchvision": _torchvision(56, 7),
    "torchvision padded": _torchvision(48, 7),
    "torchvision V2": _torchvision(64, 8, v2=True),
    "transformers": _transformers(56, 7),
    "transformers V2": _transformers(64, 8, v2=True),
    "own": lambda: (Swin(), 32),
    "own V2": lambda: (Swin(cosine=True), 32),
}
"""Name -> a constructor that gives the module and the side of its pictures. Each has four attention blocks, two with a
shift; the last stage of all but "torchvision padded" and "own" has one window."""


def make(name: str) -> tuple[nn.Module, int]:
    """In eval mode, with seeded weights that keep a signal's size."""
    torch.manual_seed(0)
    module, size = SWINS[name]()
    return seeded(module), size


def seeded(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 and not key.endswith(("logit_scale", "bias", "bias_table")):
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            elif key.endswith("bias") and parameter.ndim == 1:
                parameter.copy_(0.2 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(1 + 0.2 * noise)
    return module.eval()


def export(module: nn.Module, size: int, path: Path, *, batch: int = 2, dynamic: bool = True, opset: int = 20) -> Path:
    """With the TorchScript exporter, as `input` [B, 3, size, size] -> `logits`."""
    axes = {"input": {0: "B"}, "logits": {0: "B"}} if dynamic else {}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.randn(batch, 3, size, size),),
            str(path),
            dynamo=False,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=opset,
        )
    return path
