"""What kind of arithmetic each ONNX operator does. Data, read by the precision pass and by the rounding bound."""

from __future__ import annotations

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"})
"""Inner products: the work, done on tensor cores, which accumulate in fp32."""

REDUCTIONS = frozenset(
    {
        "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceProd",
        "ReduceLogSum", "ReduceLogSumExp", "GlobalAveragePool",
    }
)  # fmt: skip
"""Sums over dimensions: statistics."""

POOLING = frozenset({"AveragePool", "LpPool"})

ACCUMULATING = frozenset(
    {
        "Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization", "InstanceNormalization",
        "GroupNormalization", "LpNormalization", "MeanVarianceNormalization", "CumSum", "Attention",
    }
)  # fmt: skip
"""Operators with a sum inside, and arithmetic around it."""

FP32_STATISTICS = frozenset({"LayerNormalization", "RMSNormalization"})
"""Normalise in fp32 whatever type goes in and out, as their attribute stash_type = 1 says.

TensorRT has no such attribute and does so anyway: TensorRT for RTX 1.6 fuses them as Cast, Mean, ... Div, Cast, as its
detailed build log shows. Scale and shift have the type of the input: it refuses others.
"""

KEPT_IN_FP32 = (
    (REDUCTIONS - {"GlobalAveragePool"})
    | {
        "Softmax", "LogSoftmax", "CastLike",
        "InstanceNormalization", "GroupNormalization", "BatchNormalization", "LpNormalization",
        "MeanVarianceNormalization", "CumSum",
        "Exp", "Log", "Pow", "Sqrt", "Reciprocal",
        "Sin", "Cos", "Tan", "Asin", "Acos", "Acosh", "Atanh", "Sinh", "Cosh", "Mod",
        "GridSample", "AffineGrid", "DeformConv", "RoiAlign", "NonMaxSuppression", "Range", "EyeLike",
        "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial",
    }
)  # fmt: skip
"""Statistics, functions that leave the range of fp16 or need its missing digits, and coordinates.

`GlobalAveragePool` sums in fp32 by itself, and its result is no larger than its input. `BatchNormalization` divides by
a running variance that fp16 may not hold; where it follows a convolution, simplification has folded it away.
"""

EXACT = frozenset(
    {
        "Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Expand", "Identity", "Flatten", "Split", "Concat",
        "Pad", "Gather", "GatherND", "GatherElements", "Tile", "DepthToSpace", "SpaceToDepth", "ScatterND",
        "ScatterElements", "Trilu", "ReverseSequence", "Compress",
        "Relu", "Neg", "Abs", "Max", "Min", "Clip", "Where", "MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin",
        "Sign", "Floor", "Ceil", "Round", "TopK", "Dropout",
    }
)  # fmt: skip
"""Move values or choose among them: no rounding."""

MOVES = EXACT - {
    "Relu", "Neg", "Abs", "Max", "Min", "Clip", "Where", "MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin",
    "Sign", "Floor", "Ceil", "Round", "TopK", "Dropout",
}  # fmt: skip
"""Of those, the ones that only move values: they take the type of what they move."""

FUNCTIONS = frozenset(
    {
        "Sqrt", "Reciprocal", "Pow", "Exp", "Log", "Tanh", "Sigmoid", "HardSigmoid", "Erf", "Softplus", "Softsign",
        "Atan", "Asinh", "Sinh", "Cosh",
    }
)  # fmt: skip
"""Functions of one element; those of `trtship.graphs.slots.ANGLES` apart."""

ELEMENTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Neg", "Abs", "Max", "Min", "Clip", "Where", "Sum", "Mean", "Sign", "Floor", "Ceil",
     "Round", "Relu"}
)  # fmt: skip
"""One output element from one element of each input."""

FP32_SLOTS = frozenset(
    {("Resize", 1), ("Resize", 2), ("Upsample", 1), ("Dropout", 1), ("OneHot", 0), ("OneHot", 1)}
    | {("NonMaxSuppression", slot) for slot in (0, 1, 3, 4)}
    | {("Range", slot) for slot in range(3)}
)
"""Inputs that stay float32 whatever type the operator computes in: the region and scales of a Resize, the ratio of a
Dropout, what counts. (`trtship.graphs.slots` lists all inputs that are no activations; the others are integers, or have
the type of the data by definition.)"""
