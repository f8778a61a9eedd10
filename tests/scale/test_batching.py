"""What Triton is told of batching, from measured speeds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtship.scale.batching import BUSY, GAIN, MOST, batching_of, preferred_sizes
from trtship.scale.speeds import Speed, Speeds
from trtship.spec import ShapeRange

RANGE = ShapeRange(min=1, opt=8, max=128)
SPEEDS = st.dictionaries(st.integers(1, 128), st.floats(0.01, 100), max_size=6).map(
    lambda found: tuple(Speed(batch, ms, ms * 1.5) for batch, ms in sorted(found.items()))
)


def speeds(*found: Speed) -> Speeds:
    return Speeds("trtship bench on G", found)


def test_the_sizes_that_pay_are_preferred_and_a_lone_request_waits_as_long_as_it_runs() -> None:
    """The H100's figures of the README: 2212, 18149 and 19199 images/s."""
    found = batching_of(
        speeds(Speed(1, 0.452, 0.6), Speed(32, 1.763, 2.4), Speed(128, 6.667, 9.0)), RANGE, what="the plan", asked=None
    )
    assert (found.preferred, found.delay_us, found.instances) == ((32, 128), 452, 2)
    assert any("0.452 ms at batch 1" in why and "trtship bench on G" in why for why in found.why)


def test_nothing_measured_leaves_the_defaults_and_says_so() -> None:
    found = batching_of(None, RANGE, what="the plan", asked=None)
    assert (found.preferred, found.delay_us, found.instances) == ((), None, 1)
    assert any("the speed of the plan was not measured" in why for why in found.why)


def test_one_size_tells_nothing_of_a_gain() -> None:
    found = batching_of(speeds(Speed(8, 1.0)), RANGE, what="the plan", asked=None)
    assert (found.preferred, found.delay_us) == ((), None)
    assert any("at one batch only" in why for why in found.why)


def test_a_model_that_gains_nothing_by_batches_waits_for_none() -> None:
    found = batching_of(speeds(Speed(1, 1.0), Speed(8, 8.0)), RANGE, what="the plan", asked=None)
    assert (found.preferred, found.delay_us) == ((), None)


def test_speeds_outside_the_range_are_not_used() -> None:
    found = batching_of(speeds(Speed(1, 1.0), Speed(256, 2.0)), RANGE, what="the plan", asked=None)
    assert found.preferred == ()


@pytest.mark.parametrize("batch", [None, ShapeRange(min=1, opt=1, max=1)])
def test_a_model_whose_requests_are_not_put_together_has_no_queue(batch: ShapeRange | None) -> None:
    found = batching_of(speeds(Speed(1, 1.0), Speed(8, 2.0)), batch, what="the plan", asked=None)
    assert (found.preferred, found.delay_us) == ((), None)


@pytest.mark.parametrize(
    ("gpu", "whole", "count"), [(1.0, 1.0, 1), (1.0, 1.05, 1), (1.0, 1.2, 2), (1.0, 2.3, 3), (1.0, 50.0, MOST)]
)
def test_as_many_instances_as_keep_the_gpu_busy(gpu: float, whole: float, count: int) -> None:
    found = batching_of(speeds(Speed(1, gpu, whole)), RANGE, what="the plan", asked=None)
    assert found.instances == count
    assert count == MOST or count * gpu >= BUSY * whole


def test_instances_asked_for_stand() -> None:
    found = batching_of(speeds(Speed(1, 1.0, 9.0)), RANGE, what="the plan", asked=7)
    assert found.instances == 7
    assert "7 instance(s), as asked" in found.why


@given(SPEEDS)
def test_each_preferred_size_beats_all_smaller_ones(found: tuple[Speed, ...]) -> None:
    preferred = preferred_sizes(found)
    rates = {one.batch: one.batch / one.ms for one in found}
    assert 1 not in preferred
    assert list(preferred) == sorted(set(preferred))
    for size in preferred:
        assert all(rates[size] >= GAIN * rate for batch, rate in rates.items() if batch < size)
