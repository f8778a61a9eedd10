"""The models that the benchmarks time: timm's, with every parameter drawn.

timm starts biases at 0 and norms at 1, and exporters drop a sum with zeros: such a graph is quicker than that of any
trained model. Weights are drawn with timm's own initialisation, everything of one dimension gets noise on top.

    trtship deploy benchmarks/models.py:swin_t --input input=Bx3x224x224 ...
"""

from __future__ import annotations

from typing import Any


def drawn(name: str) -> Any:
    """A timm model in eval mode; the same parameters at every call."""
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model(name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def swin_t() -> Any:
    return drawn("swin_tiny_patch4_window7_224")


def swin_s() -> Any:
    return drawn("swin_small_patch4_window7_224")


def swin_b() -> Any:
    return drawn("swin_base_patch4_window7_224")


def swin_b_384() -> Any:
    return drawn("swin_base_patch4_window12_384")


def swinv2_t() -> Any:
    return drawn("swinv2_tiny_window8_256")


def vit_b() -> Any:
    return drawn("vit_base_patch16_224")


def convnext_t() -> Any:
    return drawn("convnext_tiny")


def resnet50() -> Any:
    return drawn("resnet50")


def efficientnet_b0() -> Any:
    return drawn("efficientnet_b0")
