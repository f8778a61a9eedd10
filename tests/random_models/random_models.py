"""Small models drawn at random, each with some of what makes an export silently wrong.

A seed is a model: `trtship deploy tests/random_models/random_models.py:make --model-arg seed=7`. A model is a
convolution, two to four blocks and a head. Each block does one thing that users' models do: it keeps a buffer of some
dtype, branches on a size, reads a value into Python, looks an id up in a table, mixes the rows of a batch, and so on.

A block is `legal` where an exact graph exists for every input and size. A model of legal blocks alone has to deploy in
fp32; any other model may be refused, and may not be wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

CHANNELS = 8
SIZE = 16
TABLE = 60
STEPS = 1000


class Block(nn.Module):
    """Takes and returns `x`, float32 [B, CHANNELS, H, W]; `more` is the model's second input, where it has one."""

    legal: ClassVar[bool] = True

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()

    def forward(self, x: Any, more: Any) -> Any:
        raise NotImplementedError


class Convolution(Block):
    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.act = rng.choice([nn.GELU, nn.ReLU, nn.SiLU, nn.Hardswish, nn.Identity])()

    def forward(self, x: Any, more: Any) -> Any:
        return self.act(self.conv(x))


class Normalised(Block):
    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self.norm = [nn.BatchNorm2d(CHANNELS), nn.GroupNorm(2, CHANNELS), nn.InstanceNorm2d(CHANNELS, affine=True)][
            rng.integers(3)
        ]

    def forward(self, x: Any, more: Any) -> Any:
        return x + self.norm(x)


class Upsampled(Block):
    """Up by a factor and down again, joined with what it was."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self.mode = str(rng.choice(["nearest", "bilinear"]))

    def forward(self, x: Any, more: Any) -> Any:
        y = F.interpolate(x, scale_factor=2.0, mode=self.mode)
        return x + F.avg_pool2d(y, 2)


class Attention(Block):
    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS)

    def forward(self, x: Any, more: Any) -> Any:
        t = x.flatten(2).transpose(1, 2)
        q, k, v = (y.unflatten(-1, (2, -1)).transpose(1, 2) for y in self.qkv(t).chunk(3, -1))
        t = t + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return t.transpose(1, 2).reshape(x.shape)


class ComplexBuffer(Block):
    """A phase for each channel, as a complex buffer."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        phase = torch.rand(CHANNELS, 1, 1) * 3
        self.register_buffer("phase", torch.polar(torch.ones_like(phase), phase))
        self.part = int(rng.integers(3))

    def forward(self, x: Any, more: Any) -> Any:
        y = torch.view_as_real(torch.complex(x, x * 0.5) * self.phase)
        return y[..., 0] if self.part == 0 else y[..., 1] if self.part == 1 else y.square().sum(-1)


class Float64Buffer(Block):
    """An offset that float32 has no digits for."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self.register_buffer("origin", torch.tensor([10.0 ** int(rng.integers(7, 9)) + 1.0], dtype=torch.float64))
        self.base = float(self.origin.item()) - 1.0

    def forward(self, x: Any, more: Any) -> Any:
        return ((x.double() + self.origin) - self.base).float()


class SmallBuffers(Block):
    """Buffers of other dtypes, used as they are: a gain, a mask, a shift, an order of the channels."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self.register_buffer("gain", torch.rand(CHANNELS, 1, 1).to([torch.float16, torch.bfloat16][rng.integers(2)]))
        self.register_buffer("mask", torch.from_numpy(rng.random((CHANNELS, 1, 1)) < 0.7))
        self.register_buffer("shift", torch.from_numpy(rng.integers(0, 255, (CHANNELS, 1, 1)).astype(np.uint8)))
        self.register_buffer("order", torch.from_numpy(rng.permutation(CHANNELS)))

    def forward(self, x: Any, more: Any) -> Any:
        x = x * self.gain.float() + self.shift.float() / 255
        return torch.where(self.mask, x, -x)[:, self.order]


class SafeChoice(Block):
    """A choice by value that is part of the graph."""

    def forward(self, x: Any, more: Any) -> Any:
        return torch.where(x.amax((1, 2, 3), keepdim=True) > 1.5, x / 3, x)


class SumOverPlace(Block):
    """A sum over all places, which grows with the size."""

    def forward(self, x: Any, more: Any) -> Any:
        total = x.abs().sum((2, 3), keepdim=True)
        return x + total / total.sum(1, keepdim=True).clamp(min=1e-3)


class FrozenBranch(Block):
    legal = False

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self.kind = int(rng.integers(6))
        self.level = float(rng.uniform(0.5, 2.5))

    def forward(self, x: Any, more: Any) -> Any:
        if self.kind == 0:
            if x.max() > self.level:
                x = x / 4
        elif self.kind == 1:
            x = x / (1 + x.abs().max().item())
        elif self.kind == 2:
            for _ in range(int(x.abs().max())):
                x = x * 0.8
        elif self.kind == 3:
            while x.abs().amax() > self.level:
                x = x / 2
        elif self.kind == 4:
            x = x - float(x.detach().numpy().mean())
        elif bool((x > self.level).any()):
            x = x.flip(1)
        return x


class SizeBranch(Block):
    """A condition on a size. With fixed sizes there is nothing to lose; with dynamic ones a rule has to be kept."""

    legal = False

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self.kind, self.step = int(rng.integers(6)), int(rng.integers(2, 5))

    def forward(self, x: Any, more: Any) -> Any:
        h, w = x.shape[2:]
        if self.kind == 0:
            if h % self.step:
                x = x * 2 + F.avg_pool2d(x, 3, 1, 1)
        elif self.kind == 1:
            if h > 12 + self.step:
                x = x.flip(2)
        elif self.kind == 2:
            if h == w:
                x = x + x.transpose(2, 3)
        elif self.kind == 3:
            if h * w > 200:
                x = x - x.mean((2, 3), keepdim=True)
        elif self.kind == 4:
            if x.shape[0] > 2:
                x = -x
        elif h // self.step * self.step != h:
            x = F.pad(x, (0, 0, 0, 1))[:, :, 1:]
        return x


class PythonBatch(Block):
    """The batch as a Python integer, as Microsoft's Swin computes it."""

    legal = False

    def forward(self, x: Any, more: Any) -> Any:
        n = int(x.shape[0] * x.shape[1] / CHANNELS)
        return x.reshape(n, CHANNELS, x.shape[2], x.shape[3]) * 1.5


class MixedRows(Block):
    legal = False

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self.kind = int(rng.integers(3))

    def forward(self, x: Any, more: Any) -> Any:
        if self.kind == 0:
            return x - x.mean(0, keepdim=True)
        return x.softmax(0) if self.kind == 1 else x / x.abs().max()


class Randomness(Block):
    legal = False

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self.kind = int(rng.integers(2))

    def forward(self, x: Any, more: Any) -> Any:
        return F.dropout(x, 0.2) if self.kind == 0 else x + 0.1 * torch.randn_like(x)


class Counter(Block):
    """State that is kept from call to call."""

    legal = False

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Any, more: Any) -> Any:
        self.calls += 1
        return x * (1 + 0.1 * self.calls)


class InPlace(Block):
    """Writes into what it is given; as the first block, into the model's input."""

    def forward(self, x: Any, more: Any) -> Any:
        return x.mul_(0.5).add_(0.25)


class Lookup(Block):
    """Ids into a table, one row of which is far larger than the others."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self.table = nn.Embedding(TABLE, CHANNELS)
        with torch.no_grad():
            self.table.weight[int(rng.integers(2, TABLE))] *= 10.0 ** int(rng.integers(0, 6))

    def forward(self, x: Any, more: Any) -> Any:
        return x + torch.tanh(self.table(more).mean(1))[:, :, None, None]


class Steps(Block):
    """A denoiser's step as sines and cosines."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        half = CHANNELS // 2
        self.register_buffer("freq", torch.exp(-math.log(10000.0) * torch.arange(half).float() / half))

    def forward(self, x: Any, more: Any) -> Any:
        angle = more[:, :1].float() * self.freq
        return x + torch.cat([angle.cos(), angle.sin()], -1)[:, :, None, None]


PLAIN = (Convolution, Normalised, Upsampled, Attention, SafeChoice, SumOverPlace)
BUFFERS = (ComplexBuffer, Float64Buffer, SmallBuffers)
UNSAFE = (FrozenBranch, SizeBranch, PythonBatch, MixedRows, Randomness, Counter)


@dataclass(frozen=True)
class Drawn:
    """What a seed stands for: the blocks, and how the model is to be deployed."""

    seed: int
    blocks: tuple[type[Block], ...]
    image: str
    more: str | None
    sizes: tuple[str, ...]
    precision: str

    @property
    def legal(self) -> bool:
        """Whether the model has to deploy."""
        return self.precision == "fp32" and all(block.legal for block in self.blocks)

    @property
    def name(self) -> str:
        return f"{self.seed}: {self.precision}, {self.image}, {', '.join(b.__name__ for b in self.blocks)}"

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.image, self.more) if self.more else (self.image,)


def draw(seed: int) -> Drawn:
    """The model of a seed. Half of the models have an unsafe block, a third have dynamic sizes beside the batch."""
    rng = np.random.default_rng([seed, 1])
    blocks: list[type[Block]] = [PLAIN[rng.integers(len(PLAIN))] for _ in range(int(rng.integers(1, 3)))]
    if rng.random() < 0.5:
        blocks.append(BUFFERS[rng.integers(len(BUFFERS))])
    if rng.random() < 0.5:
        blocks.insert(int(rng.integers(len(blocks) + 1)), UNSAFE[rng.integers(len(UNSAFE))])
    dynamic, dtype = rng.random() < 0.35, "uint8" if rng.random() < 0.2 else "float32"
    more = None
    if rng.random() < 0.35:
        kind = Lookup if rng.random() < 0.5 else Steps
        blocks.append(kind)
        more = "ids=Bx5:int64" if kind is Lookup else "t=Bx1:int64"
    if rng.random() < 0.15:
        blocks.insert(0, InPlace)
    return Drawn(
        seed,
        tuple(blocks),
        f"image=Bx3x{'HxW' if dynamic else f'{SIZE}x{SIZE}'}:{dtype}",
        more,
        ("H=8:16:22", "W=10:16:20") if dynamic else (),
        "fp16" if rng.random() < 0.35 else "fp32",
    )


class Net(nn.Module):
    def __init__(self, drawn: Drawn) -> None:
        super().__init__()
        torch.manual_seed(drawn.seed)
        rng = np.random.default_rng([drawn.seed, 2])
        self.trtship_inputs = list(drawn.inputs)
        self.bytes = drawn.image.endswith("uint8")
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.blocks = nn.ModuleList(block(rng) for block in drawn.blocks)
        self.first = isinstance(self.blocks[0], InPlace)
        self.head = nn.Conv2d(CHANNELS, 5, 1)
        self.pooled = bool(rng.random() < 0.5)

    def _run(self, image: Any, more: Any) -> Any:
        if self.first and not self.bytes:
            image.mul_(0.5)
        x = self.stem(image.float() / 255 if self.bytes else image)
        for block in self.blocks:
            x = block(x, more)
        x = self.head(x)
        return x.mean((2, 3)) if self.pooled else x


class OneInput(Net):
    def forward(self, image: Any) -> Any:
        return self._run(image, None)


class WithIds(Net):
    def forward(self, image: Any, ids: Any) -> Any:
        return self._run(image, ids)


class WithSteps(Net):
    def forward(self, image: Any, t: Any) -> Any:
        return self._run(image, t)


def make(seed: int = 0) -> Net:
    """The model of `seed`, always with the same weights."""
    drawn = draw(int(seed))
    if drawn.more is None:
        return OneInput(drawn)
    return (WithIds if drawn.more.startswith("ids=") else WithSteps)(drawn)
