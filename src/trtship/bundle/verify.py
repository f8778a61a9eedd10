"""Verify what is in a bundle: its graphs and its plan, read back from disk, against the original's outputs.

Needs no PyTorch: the bundle carries reference inputs and eager-PyTorch outputs. What cannot run on this machine is
recorded as not run, with the reason; a later `verify` on another machine completes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from trtship.bundle.bundle import Bundle
from trtship.bundle.given_inputs import given_verdicts
from trtship.bundle.names import MANIFEST
from trtship.bundle.room import require_room
from trtship.bundle.subjects import Checks, subjects_of
from trtship.bundle.top1 import originals_of
from trtship.files import check_writable
from trtship.input_files import Samples, source_of
from trtship.progress import SILENT, Progress
from trtship.spec import allowed_by, classes_of
from trtship.verify import Picture, Verdict
from trtship.verify.folder import labelled_pictures
from trtship.verify.gates import Gates
from trtship.verify.tried import tried_on
from trtship.verify.verdict import COSINE, REL_L2


def verify_bundle(
    bundle: str | Path | Bundle,
    *,
    eval_dir: str | Path | None = None,
    fp64: bool = False,
    max_rel_l2: float | None = None,
    min_cosine: float | None = None,
    inputs: Any = None,
    family: str | None = None,
    device: int = 0,
    record: bool = True,
    progress: Progress = SILENT,
) -> tuple[Verdict, ...]:
    """Run every check that this machine can run; returns all verdicts, those kept from other machines among them: their
    `note` says so.

    With `record` they are written into the bundle's manifest. With `eval_dir` (ImageFolder layout), top-1 too: on
    the pictures that the bundle was evaluated on when it was made, since the original is not here to be asked. With
    `fp64` against the original's outputs in float64 as well, which the bundle carries. `max_rel_l2` takes the place of
    the derived bound on relative L2 (not of the fp32 graph's, where it is larger), `min_cosine` is one more gate.
    `inputs` are real inputs, as `trtship.deploy` takes them: what the bundle makes of them is held against its fp32
    graph, run by onnxruntime, since the original is not here.

    Raises BundleError (and subclasses), ImageError, InputError, SpecError; a gate that fails is a verdict, and no
    error.
    """
    gates = Gates(max_rel_l2=max_rel_l2, min_cosine=min_cosine)
    gates.check()
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, progress=progress)
    if record:
        check_writable(opened.folder / MANIFEST, do="--no-record only shows the verdicts, or mend its permissions")
    source, m = source_of(inputs), opened.manifest
    samples = None if source is None else source.read(m.inputs, ranges=m.ranges, preprocess=m.preprocess)
    fresh = check_bundle(
        opened,
        eval_dir=None if eval_dir is None else Path(eval_dir),
        fp64=fp64,
        gates=gates,
        samples=samples,
        family=family,
        device=device,
        progress=progress,
    )
    merged = merge(opened.manifest.verdicts, fresh)

    def merge_with(now: tuple[Verdict, ...]) -> tuple[Verdict, ...]:
        """With those that others recorded meanwhile."""
        nonlocal merged
        merged = merge(now, fresh)
        return merged

    if record:
        opened.with_verdicts(merge_with)
    return _told(merged, fresh, gates)


def _told(merged: Sequence[Verdict], fresh: Sequence[Verdict], gates: Gates) -> tuple[Verdict, ...]:
    """As `merged`, where a verdict that was kept says so. A gate that the user names now is not answered by what was
    measured then."""
    now, named = {(v.subject, v.gate): v for v in fresh}, gates != Gates()
    found = []
    for verdict in merged:
        ran = now.get((verdict.subject, verdict.gate))
        if ran is verdict:
            found.append(verdict)
        elif ran is not None and named and verdict.gate in (REL_L2, COSINE):
            found.append(ran)
        else:
            kept = f"kept from before, not run now: {ran.reason}" if ran is not None else "kept from before"
            found.append(msgspec.structs.replace(verdict, note="; ".join(filter(None, [verdict.note, kept]))))
    return tuple(found)


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
    fp64: bool = False,
    gates: Gates | None = None,
    family: str | None = None,
    device: int = 0,
    known: Sequence[Verdict] = (),
    samples: Samples | None = None,
    progress: Progress = SILENT,
) -> tuple[Verdict, ...]:
    """The verdicts of this machine alone, and nothing written. `gates` stand before the bundle's own; `samples` are
    further inputs to run.

    `known` are verdicts of another bundle with the same fp32 graph, reference and pictures. Where all of that graph's
    passed, by bounds no wider than this bundle's, they are taken as they are.
    """
    require_room(bundle)
    m = bundle.manifest
    pictures: list[Picture] | None = None
    if eval_dir is not None:
        pictures = labelled_pictures(eval_dir, labels=bundle.labels, classes=classes_of(m.outputs))
    checks = Checks(
        bundle=bundle,
        gates=m.gates if gates is None else gates.over(m.gates),
        fp64=fp64,
        originals=originals_of(bundle),
        pictures=pictures,
        progress=progress,
        allowed=allowed_by(m.rules),
    )
    with subjects_of(bundle, family=family, device=device, progress=progress) as subjects:
        found = [verdict for subject in subjects for verdict in checks.standing(subject, known) or checks.of(subject)]
        found += given_verdicts(bundle, samples, subjects, gates=checks.gates, progress=progress) if samples else []
    return tried_on(found, m.tried, m.reference_sizes)
