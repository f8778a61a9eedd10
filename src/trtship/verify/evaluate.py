"""Top-1 on a folder of labelled pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trtship.errors import ImageError
from trtship.preprocess import Preprocess, preprocess_images
from trtship.progress import SILENT, Progress
from trtship.session.base import Session
from trtship.spec import Record
from trtship.verify.interval import paired_interval


class Picture(msgspec.Struct, frozen=True):
    """A picture and its class, as an index into the model's outputs."""

    path: Path
    target: int


class Evaluation(Record, frozen=True):
    """Top-1 in percent of the original and of the subject on the same pictures; `drop` in points (positive: worse);
    `agreement` is the share of pictures on which both say the same, in percent. `lost` pictures only the original had
    right, `gained` only the subject; `drop_low` and `drop_high` are the drop's 95 % confidence interval, in points
    (`trtship.verify.interval`). None where they were not recorded."""

    pictures: int
    top1_original: float
    top1: float
    drop: float
    agreement: float
    lost: int | None = None
    gained: int | None = None
    drop_low: float | None = None
    drop_high: float | None = None


def predictions(
    session: Session,
    pictures: Sequence[Picture],
    preprocess: Preprocess,
    *,
    batch: int,
    progress: Progress = SILENT,
    fixed: bool = False,
) -> Any:
    """The argmax class of each picture, int64 [n]. `fixed` fills the last batch up, for a plan of one batch size.

    Raises ImageError for a picture that cannot be read.
    """
    found: list[Any] = []
    name, output = session.inputs[0].name, session.outputs[0].name
    for begin, chunk in _chunks(pictures, batch):
        progress.step(begin / len(pictures), f"{begin} of {len(pictures)} pictures")
        array = preprocess_images([p.path for p in chunk], preprocess).astype(session.inputs[0].dtype, copy=False)
        if fixed and len(array) < batch:
            array = np.concatenate([array, np.repeat(array[-1:], batch - len(array), axis=0)])
        scores = session.infer({name: array})[output][: len(chunk)]
        if scores.ndim != 2:
            raise ImageError(
                "--eval needs a classifier",
                why=f"the output {output} has shape {list(scores.shape)}, not [B, classes]",
                do="leave --eval away",
            )
        found.append(np.where(np.isfinite(scores).all(axis=1), scores.argmax(axis=1), -1))
    return np.concatenate(found).astype(np.int64)


def evaluate(original: Any, found: Any, targets: Any) -> Evaluation:
    """Compare two arrays of predicted classes, int [n], over the true ones."""
    original, found, targets = (np.asarray(a) for a in (original, found, targets))
    top1_original, top1 = float((original == targets).mean()) * 100, float((found == targets).mean()) * 100
    before, after = original == targets, found == targets
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    low, high = paired_interval(lost, gained, len(targets))
    return Evaluation(
        pictures=len(targets),
        top1_original=top1_original,
        top1=top1,
        drop=top1_original - top1,
        agreement=float((original == found).mean()) * 100,
        lost=lost,
        gained=gained,
        drop_low=100 * low,
        drop_high=100 * high,
    )


def _chunks(pictures: Sequence[Picture], size: int) -> Iterator[tuple[int, Sequence[Picture]]]:
    for begin in range(0, len(pictures), size):
        yield begin, pictures[begin : begin + size]
