"""`--precision auto` on a GPU: every candidate is timed beside eager PyTorch, and the rule is kept.

python -m pytest tests/gpu/test_auto_on_gpu.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import trtship
from digits import HERE
from trtship.bundle import Bundle
from trtship.bundle.candidates import Candidate, Choice
from trtship.deployment import DeployResult
from trtship.deployment.search.order import risk
from trtship.deployment.way import Way
from trtship.gpu import list_gpus
from trtship.spec import as_plain

OPT = 8
BLOCK = "layers.1.blocks.1."


def deploy(checkpoint: Path, target: Path, *, candidates: str | None = None, force: bool = False) -> DeployResult:
    return trtship.deploy(
        f"{HERE / 'model.py'}:digits_swin",
        target,
        checkpoint=checkpoint,
        precision="auto",
        batch=f"1:{OPT}:32",
        eval_dir=HERE / "pictures",
        candidates=candidates,
        force=force,
    )


@pytest.fixture(scope="module")
def found(gpu_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Choice]:
    target = tmp_path_factory.mktemp("auto") / "digits.trtship"
    choice = deploy(HERE / "digits.safetensors", target).choice
    assert choice is not None
    return target, choice


def at(candidate: Candidate, batch: int) -> tuple[float, float, float]:
    (one,) = [one for one in candidate.latency if one.batch == batch]
    return one.ms, one.low, one.high


def test_everything_that_passed_was_timed_at_every_batch(
    found: tuple[Path, Choice], record_property: Callable[[str, object], None]
) -> None:
    _, choice = found
    record_property("choice", as_plain(choice))
    assert choice.timed_on == list_gpus()[0].name
    assert choice.complete
    assert [one.batch for one in choice.eager] == [1, OPT, 32]
    timed = [c for c in choice.candidates if c.outcome in ("passed", "shipped")]
    assert {c.name for c in timed} >= {"fp32", "tf32", "fp16", "bf16"}
    for candidate in timed:
        assert [one.batch for one in candidate.latency] == [1, OPT, 32]
        assert all(0 < one.low <= one.ms <= one.high for one in candidate.latency)
        assert {v.state for v in candidate.verdicts if v.subject == "plan"} <= {"passed"}


def test_no_safer_candidate_is_faster_than_what_is_shipped(found: tuple[Path, Choice]) -> None:
    _, choice = found
    passed = [c for c in choice.candidates if c.outcome in ("passed", "shipped")]
    (shipped,) = [c for c in passed if c.outcome == "shipped"]
    for other in passed:
        assert at(shipped, OPT)[1] <= at(other, OPT)[2]
        if _risk(other) < _risk(shipped):
            assert at(other, OPT)[0] >= at(shipped, OPT)[0]


def test_a_candidate_that_lost_to_a_safer_one_is_told_why(found: tuple[Path, Choice]) -> None:
    _, choice = found
    passed = [c for c in choice.candidates if c.outcome in ("passed", "shipped")]
    for candidate in passed:
        safer = [c for c in passed if _risk(c) < _risk(candidate) and at(c, OPT)[0] < at(candidate, OPT)[0]]
        assert bool(candidate.slower) == bool(safer)


def test_what_is_shipped_is_what_was_timed(found: tuple[Path, Choice]) -> None:
    target, choice = found
    bundle = Bundle.open(target)
    shipped = next(c for c in choice.candidates if c.outcome == "shipped")
    assert bundle.manifest.precision == shipped.precision
    slow = [e.batch for e, o in zip(choice.eager, shipped.latency, strict=True) if o.high >= e.low]
    assert len(choice.notes) == len(slow)


def test_the_times_are_remembered(found: tuple[Path, Choice], tmp_path: Path) -> None:
    again = deploy(HERE / "digits.safetensors", tmp_path / "again.trtship")
    assert {s.name for s in again.stages if not s.cached} == set()
    assert again.choice is not None
    assert [c.latency for c in again.choice.candidates] == [c.latency for c in found[1].candidates]


def test_an_overflow_in_fp16_becomes_a_mixture_that_is_right_on_the_gpu(gpu_cache: Path, tmp_path: Path) -> None:
    weights = load_file(HERE / "digits.safetensors")
    for name in ("norm2.weight", "norm2.bias"):
        weights[BLOCK + name] = weights[BLOCK + name] * 4e4
    weights[BLOCK + "mlp.fc1.weight"] = weights[BLOCK + "mlp.fc1.weight"] / 4e4
    save_file(weights, tmp_path / "loud.safetensors")
    choice = deploy(tmp_path / "loud.safetensors", tmp_path / "b.trtship", candidates="fp32,fp16,mixed").choice
    assert choice is not None
    outcomes = {c.name.split(",")[0]: c for c in choice.candidates}
    assert outcomes["fp16"].outcome == "failed"
    mixed = outcomes["fp16 mixed"]
    assert mixed.outcome in ("passed", "shipped")
    assert {v.state for v in mixed.verdicts} == {"passed"}


def _risk(candidate: Candidate) -> tuple[int, int]:
    return risk(Way(precision=candidate.precision, kept=candidate.kept))
