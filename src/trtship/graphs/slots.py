"""Inputs of ONNX operators that are not activations: sizes, indices and coordinates. Data, by operator and slot.

An activation may be rounded: its error moves the result by about as much. A size or an index may not: the result is
another one, or has another shape. `tests/passes/test_slots.py` holds the tables against the schemas of `onnx.defs`.
"""

from __future__ import annotations

from collections.abc import Mapping

SIZES: Mapping[str, frozenset[int]] = {
    op: frozenset(slots)
    for op, slots in {
        "AffineGrid": (1,), "BlackmanWindow": (0,), "CenterCropPad": (1,), "Col2Im": (1, 2), "ConstantOfShape": (0,),
        "CumSum": (1,), "DFT": (1, 2), "Dropout": (1, 2), "Expand": (1,), "GRU": (4,),
        "HammingWindow": (0,), "HannWindow": (0,), "LSTM": (4,), "Loop": (0,), "MaxUnpool": (2,),
        "MelWeightMatrix": (0, 1, 2, 3, 4), "NonMaxSuppression": (2, 3, 4), "OneHot": (1,), "Pad": (1, 3),
        "RNN": (4,), "Range": (0, 1, 2), "ReduceL1": (1,),
        "ReduceL2": (1,), "ReduceLogSum": (1,), "ReduceLogSumExp": (1,), "ReduceMax": (1,), "ReduceMean": (1,),
        "ReduceMin": (1,), "ReduceProd": (1,), "ReduceSum": (1,), "ReduceSumSquare": (1,), "Reshape": (1,),
        "Resize": (1, 2, 3), "ReverseSequence": (1,), "STFT": (1, 3), "SequenceAt": (1,), "SequenceErase": (1,),
        "SequenceInsert": (2,), "Slice": (1, 2, 3, 4), "Split": (1,),
        "SplitToSequence": (1,), "Squeeze": (1,), "Tile": (1,), "TopK": (1,), "Trilu": (1,), "Unsqueeze": (1,),
        "Upsample": (1,),
    }.items()
}  # fmt: skip
"""Shapes, axes, counts, scales, thresholds: how the operator works. Nothing of the data passes through them."""

SHAPE_ONLY = frozenset({"Shape", "Size", "EyeLike", "RandomNormalLike", "RandomUniformLike"})
"""Read the shape of their input, and none of its elements."""

INDICES: Mapping[str, frozenset[int]] = {
    op: frozenset(slots)
    for op, slots in {
        "Compress": (1,), "Gather": (1,), "GatherElements": (1,), "GatherND": (1,), "If": (0,), "Loop": (1,),
        "MaxUnpool": (1,), "NegativeLogLikelihoodLoss": (1,), "OneHot": (0,), "RoiAlign": (2,), "RotaryEmbedding": (3,),
        "ScatterElements": (1,), "ScatterND": (1,), "SoftmaxCrossEntropyLoss": (1,), "Where": (0,),
    }.items()
}  # fmt: skip
"""Indices and conditions: which elements are taken. The result depends on the data that they are computed from."""

COORDINATES: Mapping[str, frozenset[int]] = {
    op: frozenset(slots)
    for op, slots in {"AffineGrid": (0,), "DeformConv": (2,), "GridSample": (1,), "RoiAlign": (1,)}.items()
}  # fmt: skip
"""Float positions in a picture. fp16 has 0.5 between one number and the next at 1000."""

STEPS = frozenset({"Floor", "Ceil", "Round", "Mod"})
"""The result jumps where the argument passes a multiple of something."""

ANGLES = frozenset({"Sin", "Cos", "Tan", "Asin", "Acos", "Acosh", "Atanh"})
"""The absolute error of the argument counts, however large it is, or the slope has no bound."""

COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})


def is_size(op: str, slot: int) -> bool:
    """Return whether `op` reads this input's shape alone, or as a size, so that no data passes through it."""
    return op in SHAPE_ONLY or slot in SIZES.get(op, ())


def is_exact(op: str, slot: int) -> bool:
    """Return whether this input is a size, an index or a condition, which no rounding may change."""
    return slot in SIZES.get(op, ()) or slot in INDICES.get(op, ())
