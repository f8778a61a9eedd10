"""What the model says in float64: by it, nobody's rounding is taken for the truth."""

from __future__ import annotations

from typing import Any

import msgspec

from trtship.session.torch import TorchSession
from trtship.spec import TensorSpec
from trtship.verify import Reference


def exact_reference(
    module: Any, reference: Reference, *, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> Reference:
    """The reference's rows again, their outputs from the module in float64, on the CPU."""
    wide = tuple(msgspec.structs.replace(s, dtype="float64") if s.dtype.startswith("float") else s for s in outputs)
    with TorchSession(module, inputs=inputs, outputs=wide, dtype="float64") as session:
        return Reference(reference.batch, reference.sizes, reference.inputs, session.infer(reference.inputs))
