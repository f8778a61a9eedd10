"""Data -> ranges: what pictures make of the tensors that are to be quantized."""

from trtship.calibrate.feeds import Feeds, feeds_of_arrays, feeds_of_folder, feeds_of_samples
from trtship.calibrate.ranges import calibrate
from trtship.calibrate.records import DEFAULT_METHOD, METHODS, Calibration, Method, TensorRange, parse_method

__all__ = [
    "DEFAULT_METHOD",
    "METHODS",
    "Calibration",
    "Feeds",
    "Method",
    "TensorRange",
    "calibrate",
    "feeds_of_arrays",
    "feeds_of_folder",
    "feeds_of_samples",
    "parse_method",
]
