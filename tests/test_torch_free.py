"""`pip install trtship[rtx]`, for real, into a Python with nothing else: bundles run there without torch and onnx."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import trtship
from bare import ROOT, SITE, run_there
from deployed import BLUE, RED, copy_of, edit_graph, paint, reseal
from trtship.bundle import Bundle
from trtship.needs import BROUGHT_BY
from trtship.verify.verdict import REL_L2, TOP1_DROP

MAKERS = (*BROUGHT_BY["make"], "torch_tensorrt", "triton")
LIMIT = 500e6
"""Bytes that the torch-free installation may take."""

FACTORY = "examples/digits/model.py:digits_swin"
TIMM = ("timm/swin_tiny_patch4_window7_224", "--random-weights")


@pytest.fixture
def place(deployed: Callable[[str, str], Path], tmp_path: Path) -> Path:
    """A folder with a copy of a bundle, swin.trtship, and two pictures, cat.jpg and dog.jpg."""
    copy_of(deployed("colours", "fp16"), tmp_path).rename(tmp_path / "swin.trtship")
    for (name, colour), letter in zip({"cat": RED, "dog": BLUE}.items(), "ab", strict=True):
        (file,) = paint(tmp_path / letter, {name: [colour]}).glob("*/*.png")
        file.rename(tmp_path / f"{name}.jpg")  # a picture is known by its content
    return tmp_path


@pytest.fixture
def there(torch_free: Path, place: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the torch-free Python in `place`; fails unless it ends with `code`, without a traceback."""

    def run(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = run_there(torch_free, *arguments, cwd=place)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


Run = Callable[..., subprocess.CompletedProcess[str]]


def test_nothing_that_makes_bundles_is_there(there: Run) -> None:
    code = f"import importlib.util; print([name for name in {MAKERS!r} if importlib.util.find_spec(name)])"
    assert there("-c", code).stdout == "[]\n"


def test_it_takes_less_than_500_mb(torch_free: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from install_size import sizes

    found = sizes(torch_free)
    assert {"numpy", "pillow", "onnxruntime", "cuda-bindings", "trtship"} < set(found)
    assert sum(found.values()) < LIMIT, found


def test_the_wheel_has_every_file_of_the_package(torch_free: Path) -> None:
    def files(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}

    installed = torch_free.parents[1] / SITE / "trtship"
    assert files(installed) == files(ROOT / "src" / "trtship")
    assert (installed / "report" / "templates" / "report.html").is_file()


def test_importing_it_does_no_work_and_load_leaves_runtimes_until_they_are_needed(there: Run) -> None:
    code = "import sys, trtship; print(*sys.modules); trtship.load; print(*sys.modules)"
    before, after = (set(line.split()) for line in there("-c", code).stdout.splitlines())
    assert {name for name in before if name.startswith("trtship")} == {"trtship"}
    assert not {"numpy", "PIL", "msgspec", "rich"} & before
    assert {"numpy", "PIL"} <= after
    assert not {"onnxruntime", "tensorrt_rtx", "cuda", "rich", "jinja2"} & after


def test_pictures_and_arrays_give_what_they_give_in_the_full_environment(there: Run, place: Path) -> None:
    code = """
import json, numpy, sys, trtship
with trtship.load("swin.trtship", runtime="onnxruntime") as session:
    x = numpy.random.default_rng(0).random((3, 3, 8, 8), dtype=numpy.float32)
    pictures = session(["cat.jpg", "dog.jpg"])
    found = [pictures, session(x), session({"input": x}), session.preprocess("cat.jpg")]
    labels = [[guess.label for guess in guesses] for guesses in session.classify(["cat.jpg", "dog.jpg"], top=2)]
print(json.dumps({"found": [array.tolist() for array in found], "labels": labels}))
"""
    bare = json.loads(there("-c", code).stdout)
    full = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=True)
    assert bare["labels"] == [["red", "blue"], ["blue", "green"]]
    for ours, theirs in zip(bare["found"], json.loads(full.stdout)["found"], strict=True):
        np.testing.assert_array_equal(np.array(ours), np.array(theirs))


def readme_lines() -> str:
    """The Python of README's section "In your code"."""
    section = (ROOT / "README.md").read_text().split("\n## In your code\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return str(code)


def test_the_five_lines_in_the_readme_run_there(there: Run) -> None:
    lines = readme_lines()
    assert len(lines.splitlines()) == 5
    done = there("-c", f"{lines}\nassert logits.shape == (2, 3), logits\nassert logits.argmax(1).tolist() == [0, 2]")
    assert "Guess(index=0, label='red'" in done.stdout


def verdicts(done: subprocess.CompletedProcess[str]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(v["subject"], v["gate"]): v for v in json.loads(done.stdout)["verdicts"]}


def test_verify_checks_the_fp32_graph_and_says_what_the_other_checks_lack(
    there: Run, deployed: Callable[[str, str], Path], place: Path
) -> None:
    before = Bundle.open(place / "swin.trtship").manifest.verdicts
    unknown = tuple(v for v in before if v.subject == "plan")
    bundle = reseal(place / "swin.trtship", verdicts=unknown)  # as if nothing had been checked where it was made
    report = (bundle.folder / "report.html").read_bytes()
    pictures = deployed("colours", "fp16").parent / "pictures-fp16"
    found = verdicts(there("-m", "trtship", "verify", "swin.trtship", "--eval", pictures, "--json"))
    for gate in (REL_L2, TOP1_DROP):
        assert found["graph fp32", gate]["state"] == "passed"
        assert found["graph fp32", gate]["runtime"].startswith("onnxruntime ")
        low = found["graph fp16", gate]
        assert (low["state"], low["reason"].split("; ")[1]) == ("not run", "pip install 'trtship[make]'")
    recorded = {(v.subject, v.gate): v.state for v in Bundle.open(bundle.folder).manifest.verdicts}
    assert recorded == {key: verdict["state"] for key, verdict in found.items()}
    assert (bundle.folder / "report.html").read_bytes() != report


def test_verify_keeps_what_was_checked_where_the_bundle_was_made(there: Run, place: Path) -> None:
    before = {(v.subject, v.gate): v.state for v in Bundle.open(place / "swin.trtship").manifest.verdicts}
    found = verdicts(there("-m", "trtship", "verify", "swin.trtship", "--json", "--no-record"))
    assert {key: verdict["state"] for key, verdict in found.items()} == before


def test_verify_fails_a_graph_that_is_not_the_models(there: Run, place: Path) -> None:
    def turn(model: onnx.ModelProto) -> None:
        weights = max(model.graph.initializer, key=lambda tensor: len(tensor.dims))
        weights.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weights), weights.name))

    edit_graph(place / "swin.trtship" / "model.onnx", turn)
    reseal(place / "swin.trtship")
    found = verdicts(there("-m", "trtship", "verify", "swin.trtship", "--json", code=1))
    assert found["graph fp32", REL_L2]["state"] == "failed"


def test_the_verbs_that_use_a_bundle_work(there: Run, place: Path) -> None:
    run = json.loads(there("-m", "trtship", "run", "swin.trtship", "cat.jpg", "dog.jpg", "--json").stdout)
    assert [picture["top"][0]["label"] for picture in run["pictures"]] == ["red", "blue"]
    assert "red" in there("-m", "trtship", "run", "swin.trtship", "cat.jpg").stdout
    assert "relative L2" in there("-m", "trtship", "inspect", "swin.trtship").stdout
    there("-m", "trtship", "report", "swin.trtship", "-o", "page.html")
    assert (place / "page.html").read_text().startswith("<!DOCTYPE html>")
    there("-m", "trtship", "pack", "swin.trtship")
    there("-m", "trtship", "unpack", "swin.trtship.zip", "-o", "again.trtship")
    assert Bundle.open(place / "again.trtship").manifest == Bundle.open(place / "swin.trtship").manifest


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (("deploy", *TIMM, "-o", "new.trtship"), "make"),
        (("deploy", FACTORY, "-o", "new.trtship"), "make"),
        (("deploy", "swin.trtship/model.onnx", "-o", "new.trtship"), "make"),
        (("export", *TIMM, "-o", "new.onnx"), "make"),
        (("simplify", "swin.trtship/model.onnx", "-o", "new.onnx"), "make"),
        (("optimize", "swin.trtship/model.onnx", "-o", "new.onnx"), "make"),
        (("build", "swin.trtship/model.onnx", "-o", "new.plan"), "make"),
        (("debug", "swin.trtship", "-o", "new"), "make"),
        (("inspect", "swin.trtship", "--kernels"), "make"),
        (("bench", "swin.trtship"), "make"),
        (("sign", "swin.trtship", "--key", "key.pem"), "sign"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_a_verb_that_needs_more_says_what_to_install(
    there: Run, place: Path, command: tuple[str, ...], extra: str
) -> None:
    shutil.copytree(ROOT / "examples" / "digits", place / "examples" / "digits")
    (place / "key.pem").write_text("never read")
    before = sorted(place.rglob("*"))
    done = there("-m", "trtship", *command, code=3)
    assert done.stdout == ""
    assert done.stderr.endswith(f"  do:  pip install 'trtship[{extra}]'\n")
    assert [path for path in sorted(place.rglob("*")) if "__pycache__" not in path.parts] == before


def test_a_plan_that_does_not_fit_is_rebuilt_without_onnx(there: Run, place: Path) -> None:
    code = """
from trtship.bundle import Bundle
from trtship.engine import plan_apart
from trtship.family import choose_family
bundle = Bundle.open("swin.trtship")
m = bundle.manifest
family, _ = choose_family(None, tf32=False)
plan = plan_apart(bundle.path(m.precision_graph), family=family, inputs=m.plan_inputs, ranges=m.ranges,
                  single=m.profiles, precision=m.precision)
print(len(plan.data))
"""
    assert int(there("-c", code).stdout) > 1000


def test_the_doctor_does_not_miss_what_only_makes_bundles(there: Run) -> None:
    code = "from trtship.doctor import diagnose; from trtship.spec import to_json; print(to_json(diagnose()).decode())"
    diagnosis = json.loads(there("-c", code).stdout)
    states = {finding["subject"]: finding["state"] for finding in diagnosis["findings"]}
    assert {states[name] for name in ("torch", "onnx", "timm")} == {"note"}
    assert {states[name] for name in ("onnxruntime", "tensorrt-rtx", "cuda-bindings")} == {"ok"}
    able = {ability["what"].split(",")[0]: ability["able"] for ability in diagnosis["abilities"]}
    assert able["run bundles on the CPU"]
    assert not able["make bundles (deploy"]
    assert trtship.__version__ in there("-m", "trtship", "--version").stdout
