"""The PyTorch model that a bundle was made of, found again and checked."""

from __future__ import annotations

import msgspec

from trtship.bundle.bundle import Bundle
from trtship.errors import SourceError, SpecError
from trtship.progress import SILENT, Progress
from trtship.session.torch import TorchSession
from trtship.sources import LoadedModel, resolve
from trtship.sources.options import SourceOptions
from trtship.verify.compare import compare


def options_of(bundle: Bundle, *, source: str | None = None, checkpoint: str | None = None) -> SourceOptions:
    """How the bundle's model was loaded; `source` and `checkpoint` say where files lie now. Raises SpecError."""
    options = bundle.manifest.source.options
    changes = {k: v for k, v in {"source": source, "checkpoint": checkpoint}.items() if v is not None}
    if checkpoint is not None and options.checkpoint is None:
        raise SpecError(
            "--checkpoint does not apply",
            why=f"the bundle's weights are {bundle.manifest.source.weights}",
            do="leave it away",
        )
    return msgspec.structs.replace(options, **changes)


def original_of(bundle: Bundle, options: SourceOptions, *, progress: Progress = SILENT) -> LoadedModel:
    """Load the model as `options` say. Its outputs must be those in the bundle's reference.

    Raises SourceError where they are not, or where the bundle was made from an ONNX file.
    """
    found = resolve(options.source)
    found.check(options)
    model = found.load(options, progress)
    if not isinstance(model, LoadedModel):
        raise SourceError(
            "this bundle was made from an ONNX file",
            why="there is no PyTorch model to time beside it",
            do="deploy it from PyTorch to compare the two",
        )
    m = bundle.manifest
    with TorchSession(model.module, inputs=m.inputs, outputs=m.outputs) as session:
        reference = bundle.reference()
        verdict = compare(
            session, reference, subject="original", batches=[reference.rows], bound=m.bounds["graph fp32"]
        )
    if verdict.state != "passed":
        raise SourceError(
            f"{options.source} is not the model that this bundle was made of",
            why=verdict.reason,
            do="give the same source and --checkpoint that the bundle was made from",
        )
    return model
