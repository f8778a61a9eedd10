"""The small frozen records that travel between rooms and into the manifest.

All are msgspec structs: strict types, unknown keys refused, JSON in and out with `to_json` / `from_json`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec

from trtship.errors import SpecError
from trtship.size_condition import holds, parse_condition

T = TypeVar("T")

Milliseconds: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=1e12)]
"""A time that was measured. Where it is read from a file, one that is zero, negative or without end is refused."""
BatchSize: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]

DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", "int8", "bool")


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every record: immutable, keyword-only, strict."""


def to_json(value: object, *, indent: int = 2) -> bytes:
    """JSON with sorted keys, so that equal values give equal bytes.

    Bytes of file names that are no UTF-8 (surrogates in Python's strings) are written as escapes, `\\udcff`.
    """
    try:
        data = msgspec.json.encode(value, order="sorted")
    except UnicodeEncodeError:
        data = msgspec.json.encode(_without_surrogates(msgspec.to_builtins(value)), order="sorted")
    return msgspec.json.format(data, indent=indent) + b"\n"


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_surrogates(item) for item in value]
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def from_json(data: bytes, kind: type[T], *, what: str) -> T:
    """Parse strictly; raises SpecError naming `what` and the offending key."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise SpecError(f"{what} is not valid", why=str(error)) from error


class Precision(StrEnum):
    """Number format of the weights and activations inside a plan.

    `fp8` (E4M3) and `int8` are those of the products between QuantizeLinear and DequantizeLinear; all else is fp16.
    """

    FP32 = "fp32"
    TF32 = "tf32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"

    @property
    def unit_roundoff(self) -> float:
        """Half the gap between 1 and the next number: 2^-p for p bits of significand (IEEE 754; TF32 has 11).

        Of a quantized plan, that of the tensors that are not quantized.
        """
        bits = {"fp32": 24, "bf16": 8}.get(self.value, 11)
        return float(2.0**-bits)

    @property
    def graph_dtype(self) -> str:
        """Type of the tensors in the ONNX graph: TF32 is a way to multiply fp32 tensors, not a type. Of a quantized
        graph, that of the tensors that are not quantized."""
        return {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16"}.get(self.value, "float16")

    @property
    def quantized(self) -> bool:
        """Whether its graph has QuantizeLinear and DequantizeLinear, whose ranges are calibrated."""
        return self in (Precision.FP8, Precision.INT8)

    @property
    def tf32(self) -> bool:
        """Whether fp32 products may be multiplied in TF32: only fp32 says that they may not."""
        return self is not Precision.FP32

    @staticmethod
    def parse(text: str) -> Precision:
        try:
            return Precision(text)
        except ValueError:
            names = ", ".join(p.value for p in Precision)
            raise SpecError(
                f"unknown precision {text!r}", why=f"the precisions are {names}", do="name one of them"
            ) from None


class ShapeRange(Record, frozen=True):
    """The sizes that a dynamic dimension may take, and the one to optimize for: `min <= opt <= max`."""

    min: int
    opt: int
    max: int

    @staticmethod
    def parse(text: str, *, option: str = "--batch") -> ShapeRange:
        """`"1:8:32"` is a range, `"8"` a fixed size. Raises SpecError."""
        parts = text.split(":")
        if len(parts) not in (1, 3) or not all(re.fullmatch(r"[0-9]{1,9}", p) for p in parts):
            raise SpecError(
                f"{option} {text!r} is no size",
                why="it takes one whole number, or three as MIN:OPT:MAX",
                do=f"for example {option} 1:8:32",
            )
        numbers = [int(p) for p in parts]
        low, opt, high = numbers if len(numbers) == 3 else numbers * 3
        if low < 1 or not low <= opt <= high:
            raise SpecError(
                f"{option} {text!r} is no range",
                why=f"it needs 1 <= MIN <= OPT <= MAX, and got {low}, {opt}, {high}",
                do=f"for example {option} {':'.join(str(n) for n in sorted(max(1, n) for n in numbers))}",
            )
        return ShapeRange(min=low, opt=opt, max=high)

    @property
    def sizes_to_check(self) -> tuple[int, ...]:
        """Return the sizes to check, ascending: min, opt, max, one beside min and one beside max, the least odd size
        above 1, and an odd size in the middle."""
        between = [n for n in ((self.min + self.max) // 2, (self.min + self.max) // 2 + 1) if n % 2 == 1]
        odd = [max(3, self.min + 1 - self.min % 2), *between]
        beside = [self.min + 1, self.max - 1]
        wanted = {self.min, self.opt, self.max, *(n for n in [*odd, *beside] if self.min <= n <= self.max)}
        return tuple(sorted(wanted))

    def __contains__(self, size: int) -> bool:
        return self.min <= size <= self.max

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}" if self.min != self.max else str(self.max)


DEFAULT_BATCH = ShapeRange(min=1, opt=8, max=32)
"""For a dynamic batch that nobody gave a range."""


class TensorSpec(Record, frozen=True):
    """A named input or output. `shape` holds sizes and, for dynamic dimensions, their letters: `("B", 3, 224, 224)`."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"

    @staticmethod
    def parse(text: str) -> TensorSpec:
        """`"ids=BxL:int64"`; the dtype is float32 unless said. Raises SpecError."""
        match = re.fullmatch(r"([^=:\s]+)=([0-9A-Za-z]+(?:x[0-9A-Za-z]+)*)(?::([a-z0-9]+))?", text)
        sizes = match[2].split("x") if match else []
        if not match or not all(re.fullmatch(r"[1-9][0-9]{0,8}|[A-WYZa-wyz]", s) for s in sizes):
            raise SpecError(
                f"--input {text!r} is no input",
                why="it takes NAME=SIZExSIZE[:DTYPE], each size a whole number or one letter for a dynamic size",
                do="for example --input image=Bx3x80x80, or --input ids=BxL:int64",
            )
        dtype = match[3] or "float32"
        if dtype not in DTYPES:
            raise SpecError(
                f"--input {text!r}: unknown dtype {dtype!r}",
                why=f"the dtypes are {', '.join(DTYPES)}",
                do="name one, or none for float32",
            )
        return TensorSpec(name=match[1], shape=tuple(int(s) if s.isdigit() else s for s in sizes), dtype=dtype)

    def with_sizes(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with each letter replaced by its size."""
        return tuple(sizes[d] if isinstance(d, str) else d for d in self.shape)

    @property
    def letters(self) -> tuple[str, ...]:
        return tuple(d for d in self.shape if isinstance(d, str))

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} [{', '.join(str(d) for d in self.shape)}]"


class SizeRule(Record, frozen=True):
    """A condition on the dynamic sizes under which a graph is the model.

    A model whose code asks for a size (`if h % 2: pad`) is exported along one path; the rule says where that path is
    the right one. `text` is a condition over the letters of the inputs, such as `H % 2 == 0`; `where` is the line of
    the model's code that asks, `file:line`, or empty where it is not known.
    """

    text: str
    where: str = ""

    def __post_init__(self) -> None:
        parse_condition(self.text)  # ValueError: a manifest with another text is not in the schema

    @property
    def letters(self) -> frozenset[str]:
        """The letters that the condition depends on."""
        return parse_condition(self.text)

    def allows(self, sizes: Mapping[str, int]) -> bool:
        """Return whether `sizes` keep to the rule. Where they lack a letter of it, nothing can be said: True."""
        return not self.letters <= sizes.keys() or holds(self.text, sizes)

    def __str__(self) -> str:
        return f"{self.text} (from {self.where})" if self.where else self.text


def broken_rule(rules: Iterable[SizeRule], sizes: Mapping[str, int]) -> SizeRule | None:
    """Return the first of `rules` that `sizes` break, or None."""
    return next((rule for rule in rules if not rule.allows(sizes)), None)


def allowed_by(rules: Sequence[SizeRule]) -> Callable[[Mapping[str, int]], bool]:
    """Return a function that tells whether sizes keep all of `rules`."""
    return lambda sizes: broken_rule(rules, sizes) is None


def batch_letter(inputs: Sequence[TensorSpec]) -> str | None:
    """The letter that stands first in the first input's shape; None where that is a fixed size."""
    first = inputs[0].shape[0] if inputs and inputs[0].shape else None
    return first if isinstance(first, str) else None


def batch_range(inputs: Sequence[TensorSpec], ranges: Mapping[str, ShapeRange]) -> ShapeRange:
    """The batches that are taken: those of the batch's letter, or the one size that stands in its place."""
    letter = batch_letter(inputs)
    if letter is not None:
        return ranges[letter]
    size = int(inputs[0].shape[0]) if inputs and inputs[0].shape else 1
    return ShapeRange(min=size, opt=size, max=size)


def classes_of(outputs: Sequence[TensorSpec]) -> int | None:
    """The last size of the first output, which for a classifier is the number of its classes."""
    last = outputs[0].shape[-1] if outputs and outputs[0].shape else None
    return last if isinstance(last, int) else None


def parse_sizes(texts: Iterable[str]) -> dict[str, ShapeRange]:
    """`["L=16:32:64"]` as `{"L": ShapeRange(16, 32, 64)}`. Raises SpecError."""
    found: dict[str, ShapeRange] = {}
    for text in texts:
        letter, equals, sizes = text.partition("=")
        if not equals or not re.fullmatch(r"[A-WYZa-wyz]", letter):
            raise SpecError(
                f"--size {text!r} is no size",
                why="it takes LETTER=MIN:OPT:MAX, the letter as in --input",
                do="for example --size L=16:32:64",
            )
        if letter in found:
            raise SpecError(f"--size {letter}=... was given more than once", why="one range per size", do="keep one")
        found[letter] = ShapeRange.parse(sizes, option=f"--size {letter}=")
    return found


def as_plain(value: object) -> Any:
    """A record as dicts, lists and plain values, ready for `json.dumps`."""
    return msgspec.to_builtins(value)
