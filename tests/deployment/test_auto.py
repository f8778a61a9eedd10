"""`--precision auto` on the digits Swin, one of whose MLPs is scaled so that fp16 overflows in it: real deploys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from safetensors.torch import load_file, save_file

import trtship
from trtship.bundle import Bundle
from trtship.bundle.candidates import Choice, choice_of
from trtship.deployment import DeployResult
from trtship.deployment.search import searching
from trtship.errors import GateError, OutputError
from trtship.gpu import list_gpus

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
BLOCK = "layers.1.blocks.1."
LOUD = 4e4
"""Times what the last LayerNorm before an MLP gives, beyond fp16's 65504; the MLP's first weights take it back."""


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same function in fp32."""
    weights = load_file(DIGITS / "digits.safetensors")
    for name in ("norm2.weight", "norm2.bias"):
        weights[BLOCK + name] = weights[BLOCK + name] * LOUD
    weights[BLOCK + "mlp.fc1.weight"] = weights[BLOCK + "mlp.fc1.weight"] / LOUD
    path = tmp_path_factory.mktemp("loud") / "loud.safetensors"
    save_file(weights, path)
    return path


def deploy(checkpoint: Path, target: Path, **options: Any) -> DeployResult:
    options = {"candidates": "fp32,fp16,mixed", "eval_dir": DIGITS / "pictures", "batch": "1:2:4", **options}
    return trtship.deploy(
        f"{DIGITS / 'model.py'}:digits_swin",
        target,
        checkpoint=checkpoint,
        precision="auto",
        exporter="torchscript",
        **options,
    )


@pytest.fixture(scope="module")
def found(loud: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DeployResult]:
    target = tmp_path_factory.mktemp("auto") / "b.trtship"
    return target, deploy(loud, target)


def choice_in(target: Path) -> Choice:
    choice = choice_of(Bundle.open(target))
    assert choice is not None
    return choice


def test_the_nodes_that_overflow_and_no_others_are_kept_in_fp32(found: tuple[Path, DeployResult]) -> None:
    """Without a GPU. With one, the times choose among what passed."""
    target, result = found
    by_name = {c.name: c for c in choice_in(target).candidates}
    assert result.choice == choice_in(target)
    plain, mixed = by_name["fp16"], by_name["fp16 mixed, 2 kept"]
    assert plain.outcome == "failed"
    assert "NaN or Inf" in plain.reason
    assert (plain.rel_l2, plain.cosine, plain.drop) == (None, None, 100.0)
    kinds = {"norm2", "fc1"}
    assert {part for name in mixed.kept for part in name.split("/") if part in kinds} == kinds
    assert all("layers.1/blocks/blocks.1" in name for name in mixed.kept)
    assert mixed.rel_l2 is not None
    assert 2**-14 < mixed.rel_l2 < 2**-8
    assert by_name["fp32"].outcome in ("passed", "shipped")
    if not list_gpus():
        assert mixed.outcome == "shipped"


@pytest.mark.skipif(bool(list_gpus()), reason="there is a GPU here, which times them")
def test_without_a_gpu_the_rule_is_stated_and_speed_is_not_measured(found: tuple[Path, DeployResult]) -> None:
    choice = choice_in(found[0])
    assert "no GPU here, so speed is not measured" in choice.rule
    assert choice.timed_on is None
    assert choice.eager == ()
    assert all(c.latency == () for c in choice.candidates)
    assert choice.gates == {"--max-drop": 0.5}
    assert choice.complete


def test_the_fp32_graph_that_all_have_in_common_is_verified_once(found: tuple[Path, DeployResult]) -> None:
    """Verified anew its bound would tell of the noise that was measured for that candidate's precision."""
    choice = found[1].choice
    assert choice is not None
    of_graph = [tuple(v for v in c.verdicts if v.subject == "graph fp32") for c in choice.candidates if c.verdicts]
    assert len(of_graph) >= 3
    assert all(of_graph)
    assert set(map(repr, of_graph)) == {repr(of_graph[0])}


def test_the_mixture_is_what_the_bundle_holds(found: tuple[Path, DeployResult]) -> None:
    bundle = Bundle.open(found[0])
    shipped = next(c for c in choice_in(found[0]).candidates if c.outcome == "shipped")
    m = bundle.manifest
    assert (m.precision, m.verdicts) == (shipped.precision, shipped.verdicts)
    assert bundle.evidence("precision")["asked"] == sorted(shipped.kept)
    model = onnx.shape_inference.infer_shapes(onnx.load(bundle.path(m.precision_graph)))
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    kept = [node for node in model.graph.node if node.name in shipped.kept]
    assert [types[node.output[0]] for node in kept] == [onnx.TensorProto.FLOAT] * len(shipped.kept)
    assert {v.state for v in m.verdicts} <= {"passed", "not run"}


def test_the_same_command_does_nothing_again(found: tuple[Path, DeployResult], loud: Path) -> None:
    again = deploy(loud, found[0])
    assert again.up_to_date
    assert again.choice == found[1].choice


def test_what_was_tried_is_remembered(found: tuple[Path, DeployResult], loud: Path, tmp_path: Path) -> None:
    again = deploy(loud, tmp_path / "b.trtship")
    assert {s.name for s in again.stages if not s.cached} == set()
    assert {s.name for s in again.stages} >= {"candidate fp32", "candidate fp16", "candidate fp16 mixed, 2 kept"}
    assert again.choice is not None
    assert found[1].choice is not None
    seconds = [[c.seconds for c in choice.candidates] for choice in (again.choice, found[1].choice)]
    assert seconds[0] == seconds[1]


def test_after_an_interruption_it_goes_on_from_there(
    loud: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, tried = searching.attempt, list[str]()

    def interrupted(stages: Any, common: Any, way: Any, **known: Any) -> Any:
        if tried:
            raise KeyboardInterrupt
        tried.append(way.name)
        return honest(stages, common, way, **known)

    options = {"candidates": "fp32,bf16", "batch": "1:3:4"}  # of no other test: nothing is remembered
    with monkeypatch.context() as patch:
        patch.setattr(searching, "attempt", interrupted)
        with pytest.raises(KeyboardInterrupt):
            deploy(loud, tmp_path / "b.trtship", **options)
    assert not (tmp_path / "b.trtship").exists()
    result = deploy(loud, tmp_path / "b.trtship", **options)
    cached = {s.name: s.cached for s in result.stages}
    assert tried == ["fp32"]
    assert cached["candidate fp32"]
    assert cached["export"]
    assert not cached["candidate bf16"]


def test_a_time_budget_ships_the_best_so_far_and_the_same_command_goes_on(loud: Path, tmp_path: Path) -> None:
    target = tmp_path / "b.trtship"
    first = deploy(loud, target, candidates="fp32,bf16", time_budget="0.01s")
    assert first.choice is not None
    assert not first.choice.complete
    assert {c.name: c.outcome for c in first.choice.candidates} == {"fp32": "shipped", "bf16": "not tried"}
    assert "time budget" in next(c.reason for c in first.choice.candidates if c.name == "bf16")
    second = deploy(loud, target, candidates="fp32,bf16")
    assert second.choice is not None
    assert second.choice.complete
    assert "goes on" in second.changed[0]
    assert {c.outcome for c in second.choice.candidates} == {"passed", "shipped"}
    assert deploy(loud, target, candidates="fp32,bf16", time_budget="1h").up_to_date
    with pytest.raises(OutputError, match="not what was asked for"):
        deploy(loud, target, candidates="fp32")


def test_what_is_remembered_is_taken_in_however_little_time_there_is(loud: Path, tmp_path: Path) -> None:
    options = {"candidates": "fp32,bf16", "batch": "1:4:5"}
    assert deploy(loud, tmp_path / "a.trtship", **options, time_budget="0.01s").choice.complete is False  # type: ignore[union-attr]
    whole = deploy(loud, tmp_path / "b.trtship", **options).choice
    again = deploy(loud, tmp_path / "c.trtship", **options, time_budget="0.01s")
    assert whole is not None
    assert again.choice is not None
    assert again.choice.complete
    assert [(c.name, c.outcome, c.rel_l2) for c in again.choice.candidates] == [
        (c.name, c.outcome, c.rel_l2) for c in whole.candidates
    ]
    assert all(s.cached for s in again.stages)


def test_where_nothing_passes_there_is_no_bundle(loud: Path, tmp_path: Path) -> None:
    with pytest.raises(GateError, match="none of 2 candidates passed") as caught:
        deploy(loud, tmp_path / "out" / "b.trtship", candidates="fp32,fp16", max_rel_l2=1e-12)
    assert "over the bound 1e-12" in caught.value.why
    evidence: Any = caught.value.as_dict()["evidence"]
    assert {c["name"]: c["outcome"] for c in evidence} == {"fp32": "failed", "fp16": "failed"}
    assert not (tmp_path / "out").exists()


def test_inspect_and_json_tell_what_was_tried(
    found: tuple[Path, DeployResult], capsys: pytest.CaptureFixture[str]
) -> None:
    from trtship.cli.main import main

    assert main(["inspect", str(found[0]), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)["evidence"]["candidates"]
    assert [c["name"] for c in plain["candidates"]] == ["fp32", "fp16 mixed, 2 kept", "fp16"]
    assert main(["inspect", str(found[0]), "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "candidates, the safest first" in shown
    assert "fp16 mixed, 2" in shown
    assert "gates: --max-drop 0.5; speed: " in shown
