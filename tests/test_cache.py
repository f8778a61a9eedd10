"""The stage cache by itself, and what a second deploy does with it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trtship
from deployed import BLUE, COLOURS, GREEN, RED, paint, run_python
from graphs import model_of
from trtship.bundle import Bundle
from trtship.cache import Cache, describe_changes, key_of
from trtship.deployment import options as deploy_options
from trtship.errors import OutputError
from trtship.gpu import list_gpus


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def making(text: str, count: list[int]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        count.append(1)
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text(text)

    return make


def test_what_was_made_once_is_found_again(cache: Cache) -> None:
    made: list[int] = []
    first = cache.stage("a", {"x": 1, "y": [2, {"z": None}]}, making("one", made))
    again = cache.stage("a", {"y": [2, {"z": None}], "x": 1}, making("two", made))
    assert (len(made), first.hit, again.hit) == (1, False, True)
    assert first.key == again.key
    assert again.read("sub/file") == b"one"
    assert list(again.files) == ["sub/file"]


@pytest.mark.parametrize("other", [("b", {"x": 1}), ("a", {"x": 2}), ("a", {"x": 1, "y": None}), ("a", {"x": "1"})])
def test_another_stage_or_input_is_another_entry(cache: Cache, other: tuple[str, dict[str, Any]]) -> None:
    made: list[int] = []
    cache.stage("a", {"x": 1}, making("one", made))
    assert not cache.stage(*other, making("two", made)).hit
    assert len(made) == 2


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
inputs = st.dictionaries(st.text(max_size=3), plain, max_size=4)


def as_json(value: object) -> str:
    return json.dumps(value, sort_keys=True)


@given(inputs, inputs)
def test_keys_are_equal_exactly_when_the_inputs_are(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert (key_of("a", one) == key_of("a", two)) == (as_json(one) == as_json(two))


@given(inputs, inputs)
def test_changes_are_told_exactly_where_there_are_some(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert (describe_changes(one, two) == ()) == (_without_none(one) == _without_none(two))


def _without_none(value: object) -> object:
    """In a description, a value that is missing and one that is None are the same: neither says anything."""
    if isinstance(value, Mapping):
        return as_json({k: _without_none(v) for k, v in value.items() if v is not None})
    return as_json(value)


def test_changes_are_told_by_name_and_value(cache: Cache) -> None:
    made: list[int] = []
    stage = {"export": {"opset": 18, "exporter": None}, "batch": "1:2:4", "gone": 1}
    assert cache.stage("a", stage, making("x", made), subject="s").changed == ("first run",)
    assert cache.stage("a", stage, making("x", made), subject="s").changed == ()
    after = {"export": {"opset": 20, "exporter": None}, "batch": "1:2:8", "new": "long " * 50}
    changed = cache.stage("a", after, making("x", made), subject="s").changed
    assert changed[:3] == ("batch: 1:2:4 -> 1:2:8", "export.opset: 18 -> 20", "gone: 1 -> none")
    assert changed[3].startswith("new: none -> long long")
    assert len(changed[3]) < 80
    assert cache.stage("a", after, making("x", made), subject="another").changed == ("first run",)


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "sub" / "file").write_text("two"),
        lambda entry: (entry / "sub" / "file").unlink(),
        lambda entry: (entry / "entry.json").unlink(),
        lambda entry: (entry / "entry.json").write_text("{}"),
        lambda entry: (entry / "entry.json").write_bytes(b"\xff\x00"),
    ],
)
def test_a_damaged_entry_is_made_anew(cache: Cache, damage: Callable[[Path], Any]) -> None:
    made: list[int] = []
    damage(cache.stage("a", {}, making("one", made)).folder)
    again = cache.stage("a", {}, making("one", made))
    assert (len(made), again.hit, again.read("sub/file")) == (2, False, b"one")
    assert cache.stage("a", {}, making("one", made)).hit


def test_a_file_that_changed_after_it_was_found_is_refused(cache: Cache) -> None:
    entry = cache.stage("a", {}, making("one", []))
    (entry.folder / "sub" / "file").write_text("two")
    with pytest.raises(OutputError, match="changed after it was cached"):
        entry.read("sub/file")


def test_a_stage_that_fails_leaves_nothing_and_may_be_run_again(cache: Cache) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.stage("a", {}, fail)
    assert [p for p in cache.root.rglob("*") if p.is_file() and p.suffix != ".lock"] == []
    assert not cache.stage("a", {}, making("one", [])).hit


def test_threads_that_want_the_same_make_it_once(cache: Cache) -> None:
    made: list[int] = []
    together = threading.Barrier(6)

    def work() -> None:
        together.wait()
        entries.append(cache.stage("a", {"x": 1}, making("one", made)))

    entries: list[Any] = []
    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert sorted(entry.hit for entry in entries) == [False, *[True] * 5]


def test_a_turn_is_one_at_a_time_and_a_wait_is_told(cache: Cache) -> None:
    order: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        with cache.turn("s", waiting=waiting.set):
            order.append("second")

    with cache.turn("s", waiting=lambda: order.append("waited")):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(60)
        with cache.turn("another", waiting=lambda: order.append("waited")):
            order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize("blocked", ["cache", "stages"])
def test_a_cache_that_cannot_be_written_is_explained(tmp_path: Path, blocked: str) -> None:
    root = tmp_path / "cache"
    if blocked == "cache":
        root.write_text("a file")
    else:
        root.mkdir()
        Cache(root).root.write_text("a file")
    with pytest.raises(OutputError, match="cache") as caught:
        Cache(root).stage("a", {}, making("x", []))
    assert "TRTSHIP_CACHE" in caught.value.do


# ---- deploys ----

STAGES = ["export", "original", "simplify", "optimize", "precision", "build", "verify", "error by layer"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "colours.py").write_text(COLOURS)
    return tmp_path / "colours.py"


class Deploys:
    """Deploys of the colours into one cache of their own, each told by the stages that ran and what changed."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.source, self.folder = source, folder
        self.options: dict[str, Any] = {"exporter": "torchscript", "batch": "1:2:4", "precision": "fp16"}

    def __call__(self, output: str = "b", **options: Any) -> Any:
        self.result = trtship.deploy(
            f"{self.source}:colours", self.folder / output, force=True, **{**self.options, **options}
        )
        return self.result

    @property
    def ran(self) -> list[str]:
        return [stage.name for stage in self.result.stages if not stage.cached]

    def changed(self, stage: str) -> str:
        return "; ".join(next(s for s in self.result.stages if s.name == stage).changed)


@pytest.fixture
def deploys(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deploys:
    monkeypatch.setenv("TRTSHIP_CACHE", str(tmp_path / "cache"))
    return Deploys(source, tmp_path)


def test_a_second_deploy_does_no_work_and_says_so(deploys: Deploys) -> None:
    first = deploys()
    assert (deploys.ran, first.up_to_date, first.changed) == (STAGES, False, ("first run",))
    before = {p: p.stat().st_mtime_ns for p in (deploys.folder / "b").rglob("*")}
    again = deploys()
    assert (again.up_to_date, again.stages, again.changed) == (True, (), ())
    assert again.verdicts == first.verdicts
    assert {p: p.stat().st_mtime_ns for p in (deploys.folder / "b").rglob("*")} == before
    elsewhere = deploys("c")
    assert (elsewhere.up_to_date, deploys.ran) == (False, [])
    assert [stage.cached for stage in elsewhere.stages] == [True] * len(STAGES)
    one, two = (Bundle.open(deploys.folder / name).manifest for name in "bc")
    assert {n for n in one.files if one.files[n] != two.files.get(n)} == {"report.html"}  # it has the bundle's name
    assert one.verdicts == two.verdicts


def test_each_option_runs_again_what_depends_on_it_and_nothing_else(deploys: Deploys) -> None:
    deploys()
    for options, ran, stage, said in [
        ({"profiles": "1,4"}, ["build", "verify"], "build", " -> [1, 4]"),
        (
            {"precision": "bf16"},
            ["precision", "build", "verify", "error by layer"],
            "precision",
            "precision: fp16 -> bf16",
        ),
        (
            {"io_dtype": "float16"},
            ["precision", "build", "verify", "error by layer"],
            "precision",
            "io_dtype: float32 -> float16",
        ),
        ({"targets": ["8.9"]}, ["build", "verify"], "build", 'targets: [] -> ["8.9"]'),
        ({"passes": "patch-embedding"}, ["optimize", "verify"], "optimize", ' -> ["patch-embedding"]'),
        ({"max_drop": 1.0}, ["verify"], "verify", "max_drop: 0.5 -> 1.0"),
    ]:
        deploys.result = deploys(**options)
        assert deploys.ran == ran, options
        assert said in deploys.changed(stage)
        assert any(said.split(" -> ")[1] in change for change in deploys.result.changed), deploys.result.changed
        assert deploys.changed("export") == ""
        deploys()
        assert deploys.ran == []


def test_the_opset_and_the_exporter_run_the_export_again(deploys: Deploys) -> None:
    deploys()
    deploys(opset=18)
    assert deploys.ran[0] == "export"
    assert "original" not in deploys.ran
    assert deploys.changed("export") == "export.opset: none -> 18"


def test_a_model_argument_and_a_line_of_its_code_run_everything_again(deploys: Deploys) -> None:
    deploys()
    deploys(model_args=[("scale", "2.0")])
    assert deploys.ran == STAGES
    assert "model.weights" in deploys.changed("export")
    deploys.source.write_text(COLOURS.replace("torch.relu(x)", "torch.relu(x + 0)"))
    deploys()
    assert deploys.ran[:2] == ["export", "original"]
    assert "model.code colours.py" in deploys.changed("export")


def test_the_bytes_of_a_checkpoint_count_and_not_its_name(deploys: Deploys) -> None:
    import torch
    from safetensors.torch import save_file

    weights = {"head.weight": 3 * torch.eye(3), "head.bias": torch.zeros(3)}
    for name in ("one", "two"):
        save_file(weights, deploys.folder / f"{name}.safetensors")
    deploys(checkpoint=deploys.folder / "one.safetensors")
    assert deploys.ran == STAGES
    deploys("c", checkpoint=deploys.folder / "two.safetensors")
    assert deploys.ran == []
    save_file({**weights, "head.bias": torch.ones(3)}, deploys.folder / "one.safetensors")
    deploys(checkpoint=deploys.folder / "one.safetensors")
    assert deploys.ran == STAGES


def test_pictures_run_the_original_and_the_check_again_and_labels_what_they_name(deploys: Deploys) -> None:
    pictures = paint(deploys.folder / "p", {"red": [RED], "green": [GREEN], "blue": [BLUE]})
    deploys()
    deploys(eval_dir=pictures)
    assert deploys.ran == ["original", "precision", "verify", "error by layer"]
    assert deploys.changed("original").startswith("eval: none -> ")
    paint(deploys.folder / "more", {"red": [BLUE]})
    (deploys.folder / "more" / "red" / "0.png").rename(pictures / "red" / "1.png")
    deploys(eval_dir=pictures)
    assert deploys.ran == ["original", "precision", "verify", "error by layer"]
    (deploys.folder / "labels").write_text("blue\ngreen\nred\n")
    deploys(eval_dir=pictures, labels=deploys.folder / "labels", max_drop=100)
    assert deploys.ran == ["original", "verify"]
    deploys()
    deploys(labels=deploys.folder / "labels")
    assert deploys.ran == ["verify"]


def test_a_library_of_another_version_runs_what_it_takes_part_in(
    deploys: Deploys, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploys()
    honest = deploy_options.versions()
    monkeypatch.setattr(deploy_options, "versions", lambda: {**honest, "onnxsim": "99.0"})
    deploys()
    assert deploys.ran == ["export", "original", "simplify", "optimize", "precision", "verify", "error by layer"]
    assert deploys.changed("simplify") == f"versions.onnxsim: {honest['onnxsim']} -> 99.0"
    assert deploys.result.changed == (f"versions.onnxsim: {honest['onnxsim']} -> 99.0",)


def test_external_data_of_an_onnx_source_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTSHIP_CACHE", str(tmp_path / "cache"))
    weights = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    for run in range(2):
        (tmp_path / "w.bin").unlink(missing_ok=True)
        model = model_of("(float[batch, 4] x) => (float[batch, 3] y) { y = MatMul(x, w) }", w=weights * (run + 1))
        onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
        result = trtship.deploy(str(tmp_path / "m.onnx"), tmp_path / "b", precision="fp32", batch="1:2:4", force=True)
        assert [stage.name for stage in result.stages if not stage.cached] == STAGES[:-1]  # fp32 has no second graph
    assert [change for change in result.changed if "data w.bin" in change] == list(result.changed)


SMALL = {
    "random_weights": True,
    "model_args": [("dims", "[8,8,8,8]"), ("depths", "[1,1,1,1]"), ("num_classes", "5")],
    "inputs": ["input=Bx3x32x32"],
    "exporter": "torchscript",
    "batch": "1:2:4",
}


def test_the_seed_of_random_weights_counts_and_a_warm_deploy_imports_no_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTSHIP_CACHE", str(tmp_path / "cache"))
    for seed in (1, 0):
        result = trtship.deploy("timm/convnext_atto", tmp_path / "b", seed=seed, force=True, **SMALL)
        assert [s.name for s in result.stages if not s.cached] == STAGES
    code = f"""
import sys, trtship
for output in ("b", "c"):
    result = trtship.deploy("timm/convnext_atto", {str(tmp_path)!r} + "/" + output, seed=0, **{SMALL!r})
    print([s.name for s in result.stages if not s.cached], result.up_to_date)
print(sorted({{"torch", "timm", "onnxsim", "onnxruntime"}} & set(sys.modules)))
"""
    assert run_python(code).stdout.splitlines() == ["[] True", "[] False", "[]"]


def test_without_force_a_bundle_made_differently_is_kept_and_told(deploys: Deploys) -> None:
    deploys()
    before = (deploys.folder / "b" / "manifest.json").read_bytes()
    with pytest.raises(OutputError, match="is not what was asked for") as caught:
        trtship.deploy(f"{deploys.source}:colours", deploys.folder / "b", **{**deploys.options, "precision": "bf16"})
    assert "precision: fp16 -> bf16" in caught.value.why
    assert "--force" in caught.value.do
    assert (deploys.folder / "b" / "manifest.json").read_bytes() == before
    trtship.deploy(f"{deploys.source}:colours", deploys.folder / "b", **deploys.options)


def test_a_bundle_that_failed_a_gate_since_is_not_up_to_date(deploys: Deploys) -> None:
    import msgspec

    deploys()
    bundle = Bundle.open(deploys.folder / "b")
    first, *others = bundle.manifest.verdicts
    bundle.with_verdicts((msgspec.structs.replace(first, state="failed", reason="elsewhere"), *others))
    with pytest.raises(OutputError, match="is not what was asked for") as caught:
        trtship.deploy(f"{deploys.source}:colours", deploys.folder / "b", **deploys.options)
    assert f"{first.subject}, {first.gate} failed" in caught.value.why
    assert {v.state for v in deploys().verdicts} <= {"passed", "not run"}


def test_a_damaged_bundle_is_replaced_from_the_cache(deploys: Deploys) -> None:
    deploys()
    (deploys.folder / "b" / "model.plan").write_bytes(b"")
    result = deploys()
    assert (result.up_to_date, deploys.ran) == (False, [])
    assert "could not be used" in result.changed[0]
    Bundle.open(deploys.folder / "b")


def test_a_damaged_entry_is_remade_and_the_bundle_is_right(deploys: Deploys) -> None:
    deploys()
    (plan,) = (deploys.folder / "cache").rglob("build/*/model.plan")
    plan.write_bytes(plan.read_bytes()[:-10])
    deploys("c")
    assert deploys.ran == ["build", "verify"]  # the evidence on the build is new as well
    Bundle.open(deploys.folder / "c")


@pytest.mark.parametrize("outputs", [("b", "b"), ("b", "c")])
def test_deploys_of_the_same_in_two_processes_both_succeed(deploys: Deploys, outputs: tuple[str, str]) -> None:
    code = """
import sys, trtship
sys.stdin.readline()
result = trtship.deploy(sys.argv[1], sys.argv[2], exporter="torchscript", batch="1:2:4")
print([s.name for s in result.stages if not s.cached], result.up_to_date)
"""
    command = [sys.executable, "-c", code, f"{deploys.source}:colours"]
    processes = [
        subprocess.Popen(
            [*command, str(deploys.folder / output)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for output in outputs
    ]  # fmt: skip
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    ran = [out.strip() for out, _ in results]
    if outputs[0] == outputs[1]:
        assert sorted(ran) == sorted([f"{STAGES} False", "[] True"])
    else:
        assert sorted(name for line in ran for name in STAGES if name in line) == sorted(STAGES)
    for output in outputs:
        states = {v.subject: v.state for v in Bundle.open(deploys.folder / output).manifest.verdicts}
        assert states["graph fp16"] == "passed"
        assert states["plan"] == ("not run" if not list_gpus() else "passed")
    assert not [p for p in deploys.folder.rglob("*") if p.name.endswith(".partial")]
