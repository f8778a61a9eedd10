"""What a calibration found."""

from __future__ import annotations

from typing import Literal, get_args

from trtship.errors import SpecError
from trtship.spec import Record

Method = Literal["min-max", "entropy", "percentile"]
DEFAULT_METHOD: Method = "percentile"
"""As near to the whole range as makes no difference where there are no outliers, and without them where there are."""
METHODS: tuple[Method, ...] = get_args(Method)


class TensorRange(Record, frozen=True):
    """The range of one tensor: what it is to represent is `low` to `high`, and `amax` the larger of their magnitudes,
    which a symmetric scale represents. `rms` is the root mean square of its elements, on some of the pictures."""

    low: float
    high: float
    rms: float

    @property
    def amax(self) -> float:
        return max(abs(self.low), abs(self.high))


class Calibration(Record, frozen=True):
    """The ranges of all tensors, by name, by which `method`, from how many `pictures` (rows, where the model takes
    something else); `source` says whose they are."""

    method: Method
    pictures: int
    source: str
    tensors: dict[str, TensorRange]

    @property
    def ranges(self) -> dict[str, float]:
        """Tensor -> amax, as `trtship.passes.quantize.to_quantized` takes it."""
        return {name: tensor.amax for name, tensor in self.tensors.items()}


def parse_method(text: str) -> Method:
    """`"min-max"`, `"entropy"` or `"percentile"`. Raises SpecError."""
    for method in METHODS:
        if text == method:
            return method
    raise SpecError(
        f"unknown calibration method {text!r}", why=f"the methods are {', '.join(METHODS)}", do="name one of them"
    )
