"""A small Swin Transformer for 28 x 28 grey digits: `trtship deploy examples/digits/model.py:digits_swin`.

Patches of 2 x 2 give 14 x 14 tokens in stage 1, four windows of 7 x 7, so that its second block shifts its windows
and masks attention; stage 2 is one window. 138,882 parameters.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from timm.models.swin_transformer import SwinTransformer

SIZE = 28
# mean and standard deviation of the training rows' grey levels in 0..1, which train.py checks
MEAN, STD = 0.1314, 0.3086


class DigitsSwin(SwinTransformer):  # type: ignore[misc]  # timm is untyped
    """`input` float32 [B, 1, 28, 28] -> logits float32 [B, 10]; the attributes tell trtship what torch does not."""

    trtship_inputs: ClassVar[list[str]] = [f"input=Bx1x{SIZE}x{SIZE}"]
    trtship_preprocess: ClassVar[dict[str, Any]] = {
        "mode": "L",
        "exif_transpose": False,
        "steps": [
            {"op": "resize", "height": SIZE, "width": SIZE, "fit": "exact", "interpolation": "bilinear"},
            {"op": "rescale", "factor": 1 / 255},
            {"op": "normalize", "mean": [MEAN], "std": [STD]},
        ],
    }
    trtship_labels: ClassVar[list[str]] = [str(digit) for digit in range(10)]


def digits_swin() -> torch.nn.Module:
    """The untrained network, in training mode; digits.safetensors beside this file holds its weights."""
    return DigitsSwin(
        img_size=SIZE,
        patch_size=2,
        in_chans=1,
        num_classes=10,
        embed_dim=32,
        depths=(2, 2),
        num_heads=(4, 8),
        window_size=7,
        drop_path_rate=0.0,
        weight_init="jax",  # Xavier: timm's own 0.02 suits wider layers than 32, and learns slowly here
    )
