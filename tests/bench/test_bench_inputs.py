"""A benchmark on inputs of the user's: the rows that are timed, and what they are held against."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from trtship.bench.bench import _given
from trtship.bench.field import work_of
from trtship.bench.original import options_of, original_of
from trtship.bundle import Bundle
from trtship.errors import InputError

Deployed = Callable[[str, str], Path]


def test_the_given_rows_take_the_place_of_the_reference(deployed: Deployed, tmp_path: Path) -> None:
    bundle = Bundle.open(deployed("colours", "fp16"))
    options = options_of(bundle)
    model = original_of(bundle, options)
    rows = np.random.default_rng(0).random((5, 3, 8, 8), np.float32)
    found = _given(bundle, model, {"input": rows})
    assert found is not None
    np.testing.assert_array_equal(found.inputs["input"], rows)
    with torch.no_grad():
        wanted = model.module(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(next(iter(found.outputs.values())), wanted, rtol=1e-5, atol=1e-6)
    work = work_of(bundle, options, tmp_path / "reference", graph=tmp_path / "model.onnx", reference=found)
    np.testing.assert_array_equal(np.load(Path(work.reference) / "input-0.npy"), rows)
    assert _given(bundle, model, None) is None
    with pytest.raises(InputError, match="the model takes float32"):
        _given(bundle, model, {"input": rows.astype(np.float64)})
