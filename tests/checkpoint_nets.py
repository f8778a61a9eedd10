"""A small model with BatchNorm, an integer table and a head, for tests of checkpoints."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, tie=False):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8)
        self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.layers = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
        self.register_buffer("table", torch.arange(5) * 3)
        self.register_buffer("computed", torch.arange(4), persistent=False)
        if tie:
            self.b.weight = self.a.weight

    def forward(self, image):
        return self.layers(self.head(self.b(self.a(self.bn(self.stem(image)).mean((2, 3))).relu())))[:, self.table // 3]


class Wrap(nn.Module):
    """A model whose own attributes are named as wrappers' are."""

    def __init__(self):
        super().__init__()
        self.module, self.model = Net(), nn.Linear(5, 5)

    def forward(self, image):
        return self.model(self.module(image))


def trained(model, seed):
    """`model` with random weights, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return model.eval()


def same(first, second):
    """Whether two models have the same values under the same keys."""
    other = second.state_dict()
    return first.state_dict().keys() == other.keys() and all(
        torch.equal(value, other[key]) for key, value in first.state_dict().items()
    )
