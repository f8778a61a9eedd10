"""`trtship inspect BUNDLE --kernels` as users run it."""

from __future__ import annotations

from pathlib import Path

from cli_workplace import Workplace
from test_contract import lacks


def test_a_model_without_attention_has_layers_all_the_same(work: Workplace, deployed: Path) -> None:
    done = work.run("inspect", deployed, "--kernels")
    assert done.code == 0, done.err
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert "attention none in the graph" in lines
    assert "GELU none in the graph" in lines
    assert any(line.startswith("layers ") and line != "layers none" for line in lines)
    assert "SHA-256" not in done.out


def test_as_json_it_carries_everything(work: Workplace, deployed: Path) -> None:
    done = work.run("inspect", deployed, "--kernels", "--json")
    assert done.code == 0, done.err
    assert set(done.json) == {"kernels"}
    assert set(done.json["kernels"]) == {
        "source", "reason", "layers", "kinds", "attention", "gelu", "layer_norm", "moving", "unjoined_layers",
        "unjoined_names", "profile",
    }  # fmt: skip
    assert sum(done.json["kernels"]["kinds"].values()) == done.json["kernels"]["layers"] > 0


def test_a_machine_that_only_runs_bundles_is_told_what_it_lacks(work: Workplace, deployed: Path) -> None:
    message = work.refuses("inspect", deployed, "--kernels", code=3, env=lacks(work, "onnx_ir"))
    assert "needs the package onnx_ir, which is not installed" in message


def test_layers_that_were_changed_are_refused(work: Workplace, bundle: Path) -> None:
    (bundle / "evidence" / "layers.json").write_text("{}")
    assert "its SHA-256 is not the manifest's" in work.refuses("inspect", bundle, "--kernels")
