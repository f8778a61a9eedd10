"""Calibration on the user's own inputs: all rows, those of equal sizes together."""

from __future__ import annotations

import numpy as np

from trtship.calibrate import feeds_of_samples
from trtship.input_samples import Samples
from trtship.spec import TensorSpec

INPUTS = (TensorSpec(name="ids", shape=("B", "L"), dtype="int64"), TensorSpec(name="scale", shape=(3,)))


def test_rows_of_other_sizes_are_batches_of_their_own_and_inputs_without_a_batch_stay_whole() -> None:
    scale = np.arange(3, dtype=np.float32)
    groups = tuple({"ids": np.full((rows, size), size), "scale": scale} for rows, size in ((6, 4), (1, 7)))
    feeds = feeds_of_samples(Samples(groups, "7 rows", ""), INPUTS)
    assert (feeds.rows, feeds.source) == (7, "7 rows")
    assert [batch["ids"].shape for batch in feeds] == [(4, 4), (2, 4), (1, 7)]
    assert all(np.array_equal(batch["scale"], scale) for batch in feeds)
