"""A plan that nobody has seen right on this machine is held against the reference before anybody may call it."""

from __future__ import annotations

import msgspec

from trtship.bundle.bundle import Bundle
from trtship.bundle.room import require_room
from trtship.bundle.runtime import Chosen
from trtship.errors import GateError
from trtship.progress import SILENT, Progress
from trtship.session.base import Session
from trtship.spec import Precision, allowed_by, as_plain, batch_range
from trtship.verify import compare
from trtship.verify.compare import ON_GPU

ELSEWHERE = 1
"""Of the other sizes of the reference, the first: each one more makes loading longer."""


def needs_first_check(bundle: Bundle, chosen: Chosen) -> bool:
    """Whether the chosen runtime is a plan that is not known to be right here.

    That is one that was rebuilt; one without a passed verdict (the bundle was made without a GPU); and an fp32 plan of
    TensorRT for RTX, whose products may be multiplied in TF32 in a process that ran other plans before (see
    `trtship.family.tf32`).
    """
    if not chosen.is_plan:
        return False
    m = bundle.manifest
    passed = any(v.subject == "plan" and v.gate == "rel_l2" and v.state == "passed" for v in m.verdicts)
    return not chosen.own_plan or not passed or (m.precision is Precision.FP32 and m.family == "tensorrt_rtx")


def check_first(bundle: Bundle, session: Session, *, progress: Progress = SILENT) -> None:
    """Run the reference rows once, at the usual sizes and batch, and at the largest sizes. Closes the session and
    raises GateError where the outputs are not the original's."""
    m = bundle.manifest
    batch = batch_range(m.inputs, m.ranges).opt
    require_room(bundle, batch=batch)
    with progress.stage("check the plan", "against the bundle's reference"):
        reference = bundle.reference()
        reference = msgspec.structs.replace(reference, others=reference.others[:ELSEWHERE])
        verdict = compare(
            session,
            reference,
            subject="plan",
            batches=[batch],
            bound=m.bounds["plan"],
            ranges=m.ranges,
            allowed=allowed_by(m.rules),
            most=ON_GPU,
        )
    if verdict.state == "passed":
        return
    session.close()
    tf32 = m.precision is Precision.FP32
    raise GateError(
        f"the plan of {bundle.folder} is not the model on this machine",
        why=verdict.reason,
        do="start the process with NVIDIA_TF32_OVERRIDE=0, or load this bundle before any other"
        if tf32
        else "deploy again on this machine, or use runtime='onnxruntime'",
        evidence=as_plain(verdict),
    )
