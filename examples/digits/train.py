"""Trains the digits Swin and writes digits.safetensors, digits.json and pictures/ (see README.md).

    python examples/digits/train.py

The weights are those after the last epoch: the held-out digits choose nothing, they are only counted at the end.
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

import torch
from data import Digits, normalise, split, write_pictures
from model import MEAN, SIZE, STD, digits_swin
from safetensors.torch import save_file
from torch.nn import functional

from trtship.files import sha256_of, whole_file, whole_folder

BATCH = 32
RATE, DECAY = 2e-3, 0.05
# Positions reach this network only through its bias tables, which start near zero: they learn this much faster.
TABLE_SPEED = 20
BLACK = -MEAN / STD
PACKAGES = ("torch", "timm", "mlxtend", "numpy")


def augment(images: torch.Tensor) -> torch.Tensor:
    """Each picture turned by up to 12 degrees, scaled by up to 10 % and moved by up to 2 pixels; [B, 1, 28, 28]."""
    spread = torch.rand(4, len(images), device=images.device) * 2 - 1
    angle, scale = spread[0] * math.radians(12), 1 + spread[1] * 0.1
    shift_x, shift_y = spread[2:] * 2 * 2 / SIZE  # affine_grid measures in half pictures
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    rows = (torch.stack([cosine, -sine, shift_x], 1), torch.stack([sine, cosine, shift_y], 1))
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    # grid_sample fills with zeros: shift the background to zero and back
    return functional.grid_sample(images - BLACK, grid, align_corners=False) + BLACK


def batches(images: torch.Tensor, labels: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One epoch in random order."""
    for chosen in torch.randperm(len(images)).to(images.device).split(BATCH):  # type: ignore[no-untyped-call]
        yield augment(images[chosen]), labels[chosen]


@torch.inference_mode()
def count_right(model: torch.nn.Module, digits: Digits, device: torch.device) -> int:
    """How many digits the model names right."""
    model.eval()
    guesses = model(normalise(digits.pixels).to(device)).argmax(1).cpu()
    return int((guesses == torch.from_numpy(digits.labels)).sum())


def parameter_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Relative position tables apart from all else: faster, and not pulled to zero."""
    tables: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (tables if name.endswith("relative_position_bias_table") else others).append(parameter)
    return [{"params": others}, {"params": tables, "lr": RATE * TABLE_SPEED, "weight_decay": 0.0}]


def train(digits: Digits, *, epochs: int, seed: int, device: torch.device) -> torch.nn.Module:
    """AdamW, one warm-up epoch, then a cosine to zero; label smoothing 0.1."""
    torch.manual_seed(seed)
    model = digits_swin().to(device).train()
    images, labels = normalise(digits.pixels).to(device), torch.from_numpy(digits.labels).to(device)
    steps = math.ceil(len(images) / BATCH)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=RATE, weight_decay=DECAY)

    def rate(step: int) -> float:
        return min((step + 1) / steps, 0.5 + 0.5 * math.cos(math.pi * step / (steps * epochs)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for epoch in range(1, epochs + 1):
        start, total = time.perf_counter(), 0.0
        for pictures, names in batches(images, labels):
            loss = functional.cross_entropy(model(pictures), names, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(pictures)
        seconds = time.perf_counter() - start
        print(f"epoch {epoch:3d}/{epochs}  loss {total / len(images):.4f}  {seconds:.1f} s", flush=True)
    return model


def check_statistics(training: Digits) -> None:
    """Holds model.py's constants to the training rows, so that the two cannot drift apart."""
    levels = training.pixels / 255.0
    found = round(float(levels.mean()), 4), round(float(levels.std()), 4)
    if found != (MEAN, STD):
        raise SystemExit(f"model.py says MEAN, STD = {MEAN}, {STD}; the training digits have {found[0]}, {found[1]}")


def write_results(model: torch.nn.Module, held_out: Digits, out: Path, metrics: dict[str, Any]) -> None:
    """Weights, then pictures, then the metrics that name the weights by their hash; each whole or not at all."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with whole_file(out / "digits.safetensors") as draft:
        save_file(weights, draft)
    with whole_folder(out / "pictures", replace=True) as folder:
        write_pictures(held_out, folder)
    metrics["sha256"] = sha256_of(out / "digits.safetensors")
    with whole_file(out / "digits.json") as draft:
        draft.write_text(json.dumps(metrics, indent=2) + "\n")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the digits Swin.", allow_abbrev=False)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation; the split is fixed")
    parser.add_argument("--images", type=int, help="train on that many digits only, to try the script")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    options = parser.parse_args(arguments)
    if options.epochs < 1 or (options.images is not None and options.images < 1):
        parser.error("--epochs and --images take a number of at least 1")
    return options


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    training, held_out = split()
    check_statistics(training)
    if options.images is not None:
        training = training.evenly(options.images)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start = time.perf_counter()
    model = train(training, epochs=options.epochs, seed=options.seed, device=device)
    seconds = time.perf_counter() - start
    right, total = count_right(model, held_out, device), len(held_out.labels)
    metrics = {
        "top1": right / total,
        "right": right,
        "held_out": total,
        "trained_on": len(training.labels),
        "epochs": options.epochs,
        "seed": options.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "seconds": round(seconds, 1),
        "command": " ".join(["python", "examples/digits/train.py", *arguments]),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
    write_results(model, held_out, options.out, metrics)
    print(f"held out: {right} of {total} right, top-1 {100 * right / total:.2f} %, trained in {seconds:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
