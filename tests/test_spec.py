import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtship.errors import SpecError
from trtship.spec import DTYPES, Precision, ShapeRange, TensorSpec

LETTERS = [letter for letter in string.ascii_letters if letter not in "xX"]
shapes = st.lists(st.one_of(st.integers(1, 10**6), st.sampled_from(LETTERS)), min_size=1, max_size=6)
names = st.text(string.ascii_letters + string.digits + "._-/", min_size=1, max_size=20)


@given(name=names, shape=shapes, dtype=st.sampled_from(DTYPES))
def test_an_input_reads_back_as_it_is_written(name, shape, dtype):
    text = f"{name}={'x'.join(str(size) for size in shape)}:{dtype}"
    assert TensorSpec.parse(text) == TensorSpec(name=name, shape=tuple(shape), dtype=dtype)


def test_an_input_is_float32_unless_said():
    assert TensorSpec.parse("image=Bx3x80x80") == TensorSpec(name="image", shape=("B", 3, 80, 80), dtype="float32")


@given(st.text(max_size=30))
def test_any_text_is_an_input_or_a_spec_error(text):
    try:
        spec = TensorSpec.parse(text)
    except SpecError as error:
        assert repr(text) in error.what  # noqa: PT017
    else:
        assert all(size in LETTERS if isinstance(size, str) else size > 0 for size in spec.shape)


@pytest.mark.parametrize(
    "text", ["", "image", "image=", "=Bx3", "a=0x3", "a=Bx-1", "a=BBx3", "a=Bx3:float", "a=Xx3", "a b=3"]
)
def test_malformed_inputs_are_refused(text):
    with pytest.raises(SpecError):
        TensorSpec.parse(text)


@given(st.lists(st.integers(1, 10**6), min_size=3, max_size=3).map(sorted))
def test_a_range_reads_back_as_it_is_written(numbers):
    low, opt, high = numbers
    parsed = ShapeRange.parse(f"{low}:{opt}:{high}")
    assert (parsed.min, parsed.opt, parsed.max) == (low, opt, high)
    assert ShapeRange.parse(str(parsed)) == parsed or low == high


@given(st.integers(1, 10**6))
def test_one_number_is_a_fixed_size(size):
    assert ShapeRange.parse(str(size)) == ShapeRange(min=size, opt=size, max=size)


@given(st.lists(st.integers(1, 100), min_size=3, max_size=3).filter(lambda n: n != sorted(n)))
def test_numbers_out_of_order_are_refused_with_a_range_that_works(numbers):
    with pytest.raises(SpecError) as caught:
        ShapeRange.parse(":".join(map(str, numbers)))
    ShapeRange.parse(caught.value.do.split()[-1])


@given(st.text(max_size=12))
def test_any_text_is_a_range_or_a_spec_error(text):
    try:
        parsed = ShapeRange.parse(text)
    except SpecError:
        return
    assert 1 <= parsed.min <= parsed.opt <= parsed.max


@given(st.lists(st.integers(1, 500), min_size=3, max_size=3).map(sorted))
def test_sizes_to_check_are_within_the_range_and_have_an_odd_one_between(numbers):
    low, opt, high = numbers
    sizes = ShapeRange(min=low, opt=opt, max=high).sizes_to_check
    assert {low, opt, high} <= set(sizes)
    assert list(sizes) == sorted(set(sizes))
    assert low <= sizes[0]
    assert sizes[-1] <= high
    if high > low:
        assert any(size % 2 for size in sizes)


def test_an_unknown_precision_is_refused_with_the_known_ones():
    with pytest.raises(SpecError, match="fp32, tf32, fp16, bf16"):
        Precision.parse("fp4")
