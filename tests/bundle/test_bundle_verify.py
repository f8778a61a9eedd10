"""`trtship.verify_bundle`: faults are found, and what cannot run here is never a pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

import trtship
from deployed import BLUE, GREEN, RED, copy_of, edit_graph, paint, reseal, run_python
from trtship.bundle import Bundle
from trtship.bundle.verify import merge
from trtship.errors import ImageError
from trtship.gpu import list_gpus
from trtship.progress import Progress
from trtship.verify import Verdict, not_run

Deployed = Callable[[str, str], Path]
Key = tuple[str, str]
no_gpu = pytest.mark.skipif(bool(list_gpus()), reason="this machine has a GPU")


def by_key(verdicts: tuple[Verdict, ...]) -> dict[Key, Verdict]:
    found = {(v.subject, v.gate): v for v in verdicts}
    assert len(found) == len(verdicts)
    return found


@pytest.fixture
def copy(deployed: Deployed, tmp_path: Path) -> Path:
    return copy_of(deployed("colours", "fp16"), tmp_path)


def pictures_of(bundle: Path) -> Path:
    return bundle.parent / f"pictures-{bundle.stem.removeprefix('colours-')}"


def test_evaluation_by_hand(deployed: Deployed) -> None:
    """Seven pictures, of which one red one is green and one blue one is red: five of seven are right."""
    verdicts = by_key(Bundle.open(deployed("colours", "fp16")).manifest.verdicts)
    for subject in ("graph fp32", "graph fp16"):
        found = verdicts[subject, "top1_drop"]
        assert found.state == "passed"
        e = found.evaluation
        assert e is not None
        assert (e.pictures, e.top1_original, e.top1, e.drop, e.agreement) == (7, 500 / 7, 500 / 7, 0.0, 100.0)
        assert (e.lost, e.gained) == (0, 0)
        assert e.drop_low is not None
        assert e.drop_low < 0
        assert found.note.startswith("too few pictures to tell: the drop lies in -")
        assert found.bound is not None
        assert (found.bound.value, found.bound.source) == (0.5, "--max-drop")


def scale(factors: tuple[float, float, float]) -> Callable[[onnx.ModelProto], None]:
    """Multiply the rows of the one 3 x 3 weight: red's, green's and blue's."""

    def edit(model: onnx.ModelProto) -> None:
        (tensor,) = (t for t in model.graph.initializer if list(t.dims) == [3, 3])
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((array * np.array(factors)).astype(array.dtype), tensor.name))

    return edit


def test_a_wrong_weight_in_a_sealed_bundle_is_found_and_its_drop_is_right(copy: Path, deployed: Deployed) -> None:
    """Without its blue row the graph takes the one blue picture for green: four of seven, a drop of 100/7 points."""
    edit_graph(copy / "fp16" / "model.onnx", scale((1, 1, 0)))
    reseal(copy)
    pictures = pictures_of(deployed("colours", "fp16"))
    verdicts = by_key(trtship.verify_bundle(copy, eval_dir=pictures))
    assert verdicts["graph fp16", "rel_l2"].state == "failed"
    found = verdicts["graph fp16", "top1_drop"]
    assert found.state == "failed"
    assert found.evaluation is not None
    assert found.evaluation.drop == pytest.approx(100 / 7)
    assert found.evaluation.agreement == pytest.approx(600 / 7)
    assert "14.29 points, more than 0.5" in found.reason
    assert verdicts["graph fp32", "rel_l2"].state == verdicts["graph fp32", "top1_drop"].state == "passed"


def test_a_small_error_fails_the_bound_that_rounding_gives_though_no_class_changes(
    copy: Path, deployed: Deployed
) -> None:
    bound = Bundle.open(copy).manifest.bounds["graph fp32"].value
    assert bound < 1e-5
    edit_graph(copy / "model.onnx", scale((1 + 1e-4, 1, 1)))
    reseal(copy)
    verdicts = by_key(trtship.verify_bundle(copy, eval_dir=pictures_of(deployed("colours", "fp16"))))
    assert verdicts["graph fp32", "rel_l2"].state == "failed"
    assert verdicts["graph fp32", "top1_drop"].state == "passed"


def test_a_reference_that_was_exchanged_is_found(copy: Path) -> None:
    path = copy / "reference" / "output-0.npy"
    np.save(path, np.load(path)[::-1])
    reseal(copy)
    verdicts = by_key(trtship.verify_bundle(copy))
    assert verdicts["graph fp32", "rel_l2"].state == verdicts["graph fp16", "rel_l2"].state == "failed"


def test_a_graph_that_nothing_can_open_fails(copy: Path) -> None:
    (copy / "model.onnx").write_bytes(b"this is text")
    reseal(copy)
    verdicts = by_key(trtship.verify_bundle(copy, record=False))
    assert verdicts["graph fp32", "rel_l2"].state == "failed"
    assert "model.onnx" in verdicts["graph fp32", "rel_l2"].reason


@no_gpu
def test_what_cannot_run_here_is_not_run_and_says_why(copy: Path, deployed: Deployed) -> None:
    verdicts = by_key(trtship.verify_bundle(copy, eval_dir=pictures_of(deployed("colours", "fp16"))))
    for gate in ("rel_l2", "top1_drop"):
        verdict = verdicts["plan", gate]
        assert verdict.state == "not run"
        assert "no NVIDIA GPU here" in verdict.reason
        assert (verdict.measures, verdict.evaluation, verdict.worst, verdict.bound) == ((), None, None, None)


@no_gpu
def test_an_earlier_machines_verdict_on_the_plan_stays(copy: Path) -> None:
    bundle = Bundle.open(copy)
    elsewhere = Verdict(
        subject="plan", gate="rel_l2", state="passed", runtime="tensorrt 10.9 on another GPU", worst=0.0
    )
    others = tuple(v for v in bundle.manifest.verdicts if v.subject != "plan")
    bundle.with_verdicts((*others, elsewhere))
    told = by_key(trtship.verify_bundle(copy))["plan", "rel_l2"]
    assert told.note.startswith("kept from before, not run now: no NVIDIA GPU here")
    assert msgspec.structs.replace(told, note="") == elsewhere
    assert by_key(Bundle.open(copy).manifest.verdicts)["plan", "rel_l2"] == elsewhere


def test_a_gate_that_is_named_now_is_not_answered_by_what_was_measured_before(copy: Path) -> None:
    bundle = Bundle.open(copy)
    elsewhere = Verdict(subject="plan", gate="rel_l2", state="passed", runtime="another GPU", worst=1e-3)
    others = tuple(v for v in bundle.manifest.verdicts if v.subject != "plan")
    bundle.with_verdicts((*others, elsewhere))
    told = by_key(trtship.verify_bundle(copy, max_rel_l2=1e-6, record=False))["plan", "rel_l2"]
    assert told.state == "not run"
    assert "no NVIDIA GPU here" in told.reason


def test_a_bundle_that_failed_says_so_when_it_is_loaded(copy: Path) -> None:
    bundle, notes = Bundle.open(copy), list[str]()
    first, *others = bundle.manifest.verdicts
    bundle.with_verdicts((msgspec.structs.replace(first, state="failed", reason="planted"), *others))

    class Notes(Progress):
        def note(self, text: str) -> None:
            notes.append(text)

    trtship.load(copy, progress=Notes()).close()
    assert any("has failed a check (graph fp32, rel l2)" in note for note in notes)


def test_verdicts_are_written_only_when_asked_and_the_bundle_stays_whole(copy: Path) -> None:
    Bundle.open(copy).with_verdicts(())
    before = (copy / "manifest.json").read_bytes()
    trtship.verify_bundle(copy, record=False)
    assert (copy / "manifest.json").read_bytes() == before
    verdicts = trtship.verify_bundle(copy)
    assert Bundle.open(copy).manifest.verdicts == verdicts != ()
    assert [p.name for p in copy.iterdir() if "partial" in p.name] == []


def test_no_evaluation_without_its_pictures(copy: Path) -> None:
    """The bundle was evaluated when it was made; without the folder it cannot be here, and the old verdict stays."""
    Bundle.open(copy).with_verdicts(())
    verdicts = by_key(trtship.verify_bundle(copy, record=False))
    assert verdicts["graph fp16", "top1_drop"] == not_run("graph fp16", "top1_drop", "no --eval folder was given")


def test_other_pictures_than_the_originals_are_not_run(copy: Path, tmp_path: Path) -> None:
    Bundle.open(copy).with_verdicts(())
    folder = paint(tmp_path / "p", {"red": [RED, (255, 0, 1)], "green": [GREEN], "blue": [BLUE]})
    verdict = by_key(trtship.verify_bundle(copy, eval_dir=folder))["graph fp16", "top1_drop"]
    assert verdict.state == "not run"
    assert verdict.reason.startswith("1 of these pictures are not those")


def test_a_bundle_made_without_pictures_cannot_tell_the_original(deployed: Deployed, tmp_path: Path) -> None:
    folder = copy_of(deployed("swin", "fp16"), tmp_path)
    pictures = paint(tmp_path / "p", {"0": [RED], "9": [GREEN]})
    verdict = by_key(trtship.verify_bundle(folder, eval_dir=pictures))["graph fp32", "top1_drop"]
    assert verdict.state == "not run"
    assert "made without --eval" in verdict.reason


def test_a_folder_whose_classes_are_not_the_models_is_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be matched"):
        trtship.verify_bundle(copy, eval_dir=paint(tmp_path / "p", {"cyan": [RED], "plum": [RED]}))


def test_it_needs_no_torch(copy: Path) -> None:
    code = f"""
import sys
sys.modules["torch"] = None
import trtship
verdicts = trtship.verify_bundle({str(copy)!r})
print(sorted({{(v.subject, v.state) for v in verdicts if v.subject != "plan" and v.worst is not None}}))
"""
    assert run_python(code).stdout.strip() == str([("graph fp16", "passed"), ("graph fp32", "passed")])


subjects = st.sampled_from(["graph fp32", "graph fp16", "plan"])
gates = st.sampled_from(["rel_l2", "top1_drop"])
states = st.sampled_from(["passed", "failed", "not run"])
verdict_lists = st.dictionaries(st.tuples(subjects, gates), states).map(
    lambda found: tuple(Verdict(subject=s, gate=g, state=v) for (s, g), v in found.items())  # type: ignore[arg-type]
)


@given(verdict_lists, verdict_lists)
def test_merging_loses_no_verdict_and_invents_none(old: tuple[Verdict, ...], new: tuple[Verdict, ...]) -> None:
    before, fresh, merged = by_key(old), by_key(new), by_key(merge(old, new))
    assert merged.keys() == before.keys() | fresh.keys()
    for key, verdict in merged.items():
        runs = [v[key] for v in (fresh, before) if key in v and v[key].state != "not run"]
        assert verdict == (runs[0] if runs else fresh.get(key, before.get(key)))
