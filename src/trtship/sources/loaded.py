"""What a source gives: a PyTorch module, or an ONNX graph, with all that is known about its inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from trtship.preprocess import Preprocess
from trtship.spec import TensorSpec, to_json

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A module that takes `inputs` by position and returns one tensor, or a tuple of them, named `outputs`.

    It is a private copy: in eval mode, on the CPU, without gradients, with the dtypes that the user gave it. Only where
    all its parameters are float16 or bfloat16 these are float32 here, which changes no value, and `notes` say so. It
    has never run: what named its outputs was a run of another copy. `facts` are what else determines it: versions, and
    hashes of the user's own code.
    """

    source: str
    module: torch.nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    def fingerprint(self) -> dict[str, str]:
        """Everything that determines this model: hashes of its weights and its modules' attributes, and `facts`."""
        from trtship.sources.hashing import hash_structure, hash_weights

        return {
            **self.facts,
            "source": self.source,
            "weights": hash_weights(self.module),
            "structure": hash_structure(self.module),
            "inputs": "; ".join(str(spec) for spec in self.inputs),
            "outputs": ", ".join(self.outputs),
            "preprocess": to_json(self.preprocess, indent=0).decode().strip(),
            "labels": to_json(self.labels, indent=0).decode().strip(),
        }


@dataclass(frozen=True, kw_only=True)
class LoadedGraph:
    """An ONNX file that has been checked, with the files that hold its external data."""

    source: str
    path: Path
    external_data: tuple[Path, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    notes: tuple[str, ...] = ()
