"""Verify what is in a bundle: its graphs and its plan, read back from disk, against the original's outputs.

Needs no PyTorch: the bundle carries reference inputs and eager-PyTorch outputs. What cannot run on this machine is
recorded as not run, with the reason; a later `verify` on another machine completes it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trtship.bundle.bundle import MANIFEST, Bundle
from trtship.bundle.runtime import open_session
from trtship.errors import GraphError, MachineError
from trtship.files import check_writable, sha256_of
from trtship.passes import emulate_low
from trtship.progress import SILENT, Progress
from trtship.session.base import Session
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Record, batch_range, classes_of, from_json
from trtship.verify import Bound, Evaluation, Picture, Verdict, compare, evaluate, not_run
from trtship.verify.evaluate import predictions
from trtship.verify.folder import labelled_pictures
from trtship.verify.verdict import State

ORIGINALS = "evidence/originals.json"


class Originals(Record, frozen=True):
    """What eager PyTorch said of the evaluation pictures: predicted class by the picture's SHA-256."""

    runtime: str
    predictions: dict[str, int]


def verify_bundle(
    bundle: str | Path | Bundle,
    *,
    eval_dir: str | Path | None = None,
    family: str | None = None,
    device: int = 0,
    record: bool = True,
    progress: Progress = SILENT,
) -> tuple[Verdict, ...]:
    """Run every check that this machine can run; returns all verdicts, those kept from other machines among them.

    With `record` they are written into the bundle's manifest. With `eval_dir` (ImageFolder layout), top-1 too: on
    the pictures that the bundle was evaluated on when it was made, since the original is not here to be asked.

    Raises BundleError (and subclasses), ImageError; a gate that fails is a verdict, not an error.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, progress=progress)
    if record:
        check_writable(opened.folder / MANIFEST, do="--no-record only shows the verdicts, or mend its permissions")
    fresh = check_bundle(
        opened, eval_dir=None if eval_dir is None else Path(eval_dir), family=family, device=device, progress=progress
    )
    merged = merge(opened.manifest.verdicts, fresh)
    if record:
        opened.with_verdicts(merged)
    return merged


def merge(old: Sequence[Verdict], new: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """The new verdicts; where one was not run now and was run before, the old one."""
    before = {(v.subject, v.gate): v for v in old}
    found = []
    for verdict in new:
        kept = before.pop((verdict.subject, verdict.gate), None)
        if kept is not None and kept.state != "not run" and verdict.state == "not run":
            verdict = kept
        found.append(verdict)
    return (*found, *before.values())


def check_bundle(
    bundle: Bundle,
    *,
    eval_dir: Path | None = None,
    family: str | None = None,
    device: int = 0,
    progress: Progress = SILENT,
) -> tuple[Verdict, ...]:
    """The verdicts of this machine alone, and nothing written."""
    m = bundle.manifest
    original = _originals(bundle)
    pictures: list[Picture] | None = None
    if eval_dir is not None:
        pictures = labelled_pictures(eval_dir, labels=bundle.labels, classes=classes_of(m.outputs))
    run = _Run(bundle, original, pictures, progress)
    verdicts = run.subject("graph fp32", lambda: OnnxRuntimeSession(bundle.path(m.graph)))
    if m.precision_graph != m.graph:
        verdicts += run.subject(f"graph {m.precision.value}", lambda: _precision_session(bundle))
    return (*verdicts, *run.subject("plan", lambda: _plan_session(bundle, family, device, progress)))


class _Run:
    """The checks of one subject, given how to open it."""

    def __init__(
        self, bundle: Bundle, originals: Originals | None, pictures: list[Picture] | None, progress: Progress
    ) -> None:
        self.bundle, self.originals, self.pictures, self.progress = bundle, originals, pictures, progress
        self.reference = bundle.reference()

    def subject(self, subject: str, open_it: Callable[[], Session]) -> tuple[Verdict, ...]:
        m = self.bundle.manifest
        wants_eval = self.pictures is not None or self.originals is not None
        try:
            session = open_it()
        except (MachineError, GraphError) as error:
            # a machine that cannot open it says nothing about it; a graph that nothing can open is no model's
            state: State = "not run" if isinstance(error, MachineError) else "failed"
            reason = f"{error.what}: {error.why}" if error.why else error.what
            gates: tuple[str, ...] = ("rel_l2", "top1_drop") if wants_eval else ("rel_l2",)
            return tuple(Verdict(subject=subject, gate=gate, state=state, reason=reason) for gate in gates)
        with session, self.progress.stage(f"verify {subject}", f"on {session.runtime}"):
            verdict = compare(
                session,
                self.reference,
                subject=subject,
                batches=batch_range(m.inputs, m.ranges).sizes_to_check,
                bound=m.bounds[subject],
                progress=self.progress,
            )
            return (verdict, self._evaluate(subject, session)) if wants_eval else (verdict,)

    def _evaluate(self, subject: str, session: Session) -> Verdict:
        spec, limit = self.bundle.manifest.preprocess, self.bundle.manifest.max_drop
        if self.pictures is None:
            return not_run(subject, "top1_drop", "no --eval folder was given")
        if self.originals is None:
            return not_run(
                subject, "top1_drop", "the bundle was made without --eval, so what the original says is unknown"
            )
        if spec is None:
            return not_run(subject, "top1_drop", "the bundle has no preprocessing")
        known = [(p, self.originals.predictions.get(sha256_of(p.path))) for p in self.pictures]
        missing = sum(prediction is None for _, prediction in known)
        if missing:
            return not_run(
                subject, "top1_drop", f"{missing} of these pictures are not those that the original was run on"
            )
        return _gate(
            subject,
            session.runtime,
            limit,
            evaluate(
                np.array([prediction for _, prediction in known]),
                run_predictions(session, self.pictures, self.bundle, progress=self.progress),
                np.array([p.target for p in self.pictures]),
            ),
        )


def _gate(subject: str, runtime: str, limit: float, found: Evaluation) -> Verdict:
    bad = found.drop > limit
    return Verdict(
        subject=subject,
        gate="top1_drop",
        state="failed" if bad else "passed",
        reason=f"top-1 fell by {found.drop:.2f} points, more than {limit:g}" if bad else "",
        runtime=runtime,
        bound=Bound(value=limit, source="--max-drop"),
        worst=found.drop,
        evaluation=found,
    )


def run_predictions(session: Session, pictures: Sequence[Picture], bundle: Bundle, *, progress: Progress) -> Any:
    """Predicted classes, in batches that the plan takes."""
    limits = batch_range(bundle.manifest.inputs, bundle.manifest.ranges)
    return predictions(
        session,
        pictures,
        bundle.manifest.preprocess,  # type: ignore[arg-type]
        batch=limits.opt,
        fixed=limits.min > 1,
        progress=progress,
    )


def _originals(bundle: Bundle) -> Originals | None:
    if ORIGINALS not in bundle.manifest.files:
        return None
    return from_json(bundle.read(ORIGINALS), Originals, what=ORIGINALS)


def _precision_session(bundle: Bundle) -> Session:
    """The strongly typed graph through onnxruntime, with every rounding that TensorRT may do: an fp32 graph that rounds
    each tensor stands in for it, since onnxruntime itself leaves most of them out. `runtime` says so."""
    path = bundle.path(bundle.manifest.precision_graph)
    with tempfile.TemporaryDirectory() as folder:
        stand_in = Path(folder) / "emulated.onnx"
        emulate_low(path, stand_in)
        session = OnnxRuntimeSession(stand_in)
    low = bundle.manifest.precision.graph_dtype
    session.runtime += f", {low} emulated: every tensor rounded to it after an fp32 kernel"
    return session


def _plan_session(bundle: Bundle, family: str | None, device: int, progress: Progress) -> Session:
    """The bundle's own plan; a rebuilt one would say nothing about it."""
    return open_session(
        bundle, runtime="tensorrt", family=family, device=device, rebuild=False, progress=progress
    ).session
