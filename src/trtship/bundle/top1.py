"""Top-1 of a bundle's subjects on the pictures that it was made with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trtship.bundle.bundle import Bundle
from trtship.pictures import hash_image
from trtship.progress import Progress
from trtship.session.base import Session
from trtship.spec import Record, batch_range, classes_of, from_json
from trtship.verify import Bound, Evaluation, Picture, Verdict, evaluate, not_run
from trtship.verify.evaluate import predictions
from trtship.verify.verdict import TOP1_DROP

ORIGINALS = "evidence/originals.json"


class Originals(Record, frozen=True):
    """What eager PyTorch said of the evaluation pictures: predicted class by the picture's SHA-256."""

    runtime: str
    predictions: dict[str, int]


def originals_of(bundle: Bundle) -> Originals | None:
    """None for a bundle that was made without --eval."""
    if ORIGINALS not in bundle.manifest.files:
        return None
    return from_json(bundle.read(ORIGINALS), Originals, what=ORIGINALS)


def top1_verdict(
    session: Session,
    bundle: Bundle,
    *,
    subject: str,
    pictures: Sequence[Picture] | None,
    originals: Originals | None,
    progress: Progress,
) -> Verdict:
    """Run `pictures`, and hold the top-1 lost against the bundle's limit."""
    spec, limit = bundle.manifest.preprocess, bundle.manifest.max_drop
    if pictures is None:
        return not_run(subject, TOP1_DROP, "no --eval folder was given")
    if originals is None:
        return not_run(subject, TOP1_DROP, "the bundle was made without --eval, so what the original says is unknown")
    if spec is None:
        return not_run(subject, TOP1_DROP, "the bundle has no preprocessing")
    known = [(p, originals.predictions.get(hash_image(p.path))) for p in pictures]
    missing = sum(prediction is None for _, prediction in known)
    if missing:
        return not_run(subject, TOP1_DROP, f"{missing} of these pictures are not those that the original was run on")
    found = evaluate(
        np.array([prediction for _, prediction in known]),
        _predictions(session, pictures, bundle, progress=progress),
        np.array([p.target for p in pictures]),
    )
    return held(subject, session.runtime, limit, found, classes=classes_of(bundle.manifest.outputs))


def held(subject: str, runtime: str, limit: float, found: Evaluation, *, classes: int | None = None) -> Verdict:
    """The verdict on the drop that was seen. Where its confidence interval holds values on either side of the limit,
    the pictures cannot tell: that is said, and changes no verdict. So is an original that is right no more often than
    by chance: it has nothing to lose."""
    bad = found.drop > limit
    low, high = found.drop_low, found.drop_high
    undecided = low is not None and high is not None and low <= limit < high
    notes = [f"too few pictures to tell: the drop lies in {low:.2f} to {high:.2f} points (95 %)"] if undecided else []
    if classes and found.top1_original <= 100 / classes:
        notes.append(
            f"this says nothing: the original itself is right on {found.top1_original:.2f} %, no more than by chance; "
            "is it trained, and do the folders' names stand for its classes (--labels)?"
        )
    return Verdict(
        subject=subject,
        gate=TOP1_DROP,
        state="failed" if bad else "passed",
        reason=f"top-1 fell by {found.drop:.2f} points, more than {limit:g}" if bad else "",
        runtime=runtime,
        bound=Bound(value=limit, source="--max-drop"),
        worst=found.drop,
        evaluation=found,
        note="; ".join(notes),
    )


def _predictions(session: Session, pictures: Sequence[Picture], bundle: Bundle, *, progress: Progress) -> Any:
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
