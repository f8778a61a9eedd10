"""No bundle of a random model passes its gates and differs from the untouched model: 30 models here, 500 by hand
(`python tests/random_models --models 500`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from judge_models import judge

from random_models import draw

SEEDS = range(30)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_model_ends_in_a_right_bundle_or_is_refused(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTSHIP_CACHE", str(tmp_path / "cache"))
    outcome = judge(seed, tmp_path)
    assert outcome.state in ("right", "refused"), f"{outcome.state}: {outcome.name}: {outcome.detail}"


def test_the_models_of_ci_have_safe_and_unsafe_ones_of_every_kind() -> None:
    drawn = [draw(seed) for seed in SEEDS]
    assert sum(one.legal for one in drawn) >= 8
    assert sum(not all(block.legal for block in one.blocks) for one in drawn) >= 8
    assert {one.precision for one in drawn} == {"fp32", "fp16"}
    assert any(one.sizes for one in drawn)
    assert any(one.more for one in drawn)
