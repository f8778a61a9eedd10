"""A plan that nobody has seen right on this machine is held against the reference before it may be called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deployed import copy_of, edit_graph, reseal
from trtship.bundle import Bundle
from trtship.bundle.first_check import check_first, needs_first_check
from trtship.bundle.runtime import Chosen
from trtship.errors import GateError, InputError
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.verify import Verdict, not_run

Deployed = Callable[[str, str], Path]


def perturbed(model: onnx.ModelProto) -> None:
    """Every weight 5 % larger."""
    for weight in model.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT:
            weight.CopyFrom(numpy_helper.from_array(np.float32(1.05) * numpy_helper.to_array(weight), weight.name))


def test_outputs_that_are_the_originals_pass_and_the_session_stays_open(deployed: Deployed) -> None:
    bundle = Bundle.open(deployed("swin", "fp32"))
    with OnnxRuntimeSession(bundle.path("model.onnx")) as session:
        check_first(bundle, session)
        session.infer(bundle.reference().at(2)[0])


def test_other_outputs_are_refused_with_their_evidence_and_the_session_is_closed(
    deployed: Deployed, tmp_path: Path
) -> None:
    copy = copy_of(deployed("swin", "fp32"), tmp_path)
    edit_graph(copy / "model.onnx", perturbed)
    bundle = reseal(copy)
    session = OnnxRuntimeSession(bundle.path("model.onnx"))
    with pytest.raises(GateError, match="is not the model on this machine") as caught:
        check_first(bundle, session)
    assert isinstance(caught.value.evidence, dict)
    assert caught.value.evidence["state"] == "failed"
    assert "NVIDIA_TF32_OVERRIDE=0" in caught.value.do
    with pytest.raises(InputError, match="closed"):
        session.infer(bundle.reference().at(2)[0])


class Plan(Chosen, frozen=True):
    """A chosen session that counts as a plan, on a machine that can run none."""

    @property
    def is_plan(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("precision", "state", "own", "needed"),
    [
        ("fp16", "passed", True, False),
        ("fp16", "passed", False, True),
        ("fp16", "not run", True, True),
        ("fp32", "passed", True, True),
    ],
)
def test_only_a_plan_that_is_not_known_to_be_right_here_is_checked(
    deployed: Deployed, precision: str, state: str, own: bool, needed: bool
) -> None:
    bundle = Bundle.open(deployed("colours", precision))
    verdict = (
        Verdict(subject="plan", gate="rel_l2", state="passed") if state == "passed" else not_run("plan", "rel_l2", "-")
    )
    manifest = msgspec.structs.replace(bundle.manifest, verdicts=(verdict,))
    known = msgspec.structs.replace(bundle, manifest=manifest)
    with OnnxRuntimeSession(bundle.path("model.onnx")) as session:
        assert needs_first_check(known, Plan(session, "", own)) is needed
        assert needs_first_check(known, Chosen(session, "", own)) is False
