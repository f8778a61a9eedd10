"""What every verb keeps to: help, exit codes, streams, JSON, imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from cli_workplace import MODEL, QUICK, Workplace, environment

import trtship
from graphs import written
from trtship.cli.main import VERBS

SCALE = "(float[B, 4] x) => (float[B, 4] y) { one = Constant<value = float {1.5}>() y = Mul(x, one) }"
HEAVY = ("numpy", "rich", "torch", "onnx", "tensorrt", "tensorrt_rtx", "onnxruntime", "msgspec")
BUG = """
import sys
import trtship.cli.doctor as doctor
def run(arguments, console):
    return {}["a key that is not there"]
doctor.run = run
from trtship.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_with_an_example_of_itself(work: Workplace, verb: str) -> None:
    done = work.run(verb, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"example:\n  trtship {verb}" in done.out
    assert all(option in done.out for option in ("--json", "--quiet", "--debug"))


@pytest.mark.parametrize("arguments", [["--help"], ["deploy", "--help"], ["--version"], ["no-such-verb"]])
def test_help_and_mistakes_in_the_command_line_load_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom trtship.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        f"print(sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_the_library_is_imported_without_anything_heavy() -> None:
    code = f"import sys, trtship; print(sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_version_is_the_packages(work: Workplace) -> None:
    assert work.run("--version").out == f"trtship {trtship.__version__}\n"


def test_the_command_and_python_m_are_the_same_function() -> None:
    from trtship import __main__
    from trtship.cli.main import main

    found = [entry for entry in entry_points(group="console_scripts") if entry.name == "trtship"]
    assert __main__.main is main
    assert all(entry.load() is main for entry in found)


@pytest.mark.parametrize(
    "arguments",
    [[], ["no-such-verb"], ["doctor", "--no-such-flag"], ["doctor", "--js"], ["inspect"], ["build", "x.onnx"]],
    ids=" ".join,
)
def test_a_mistake_in_the_command_line_is_one_message(work: Workplace, arguments: list[str]) -> None:
    assert "--help" in work.refuses(*arguments)


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_flag_is_an_error_as_json_too(work: Workplace, verb: str) -> None:
    done = work.run(verb, "--no-such-flag", "--json")
    assert done.code == 2
    assert set(done.json) == {"error"}
    assert set(done.json["error"]) == {"type", "what", "why", "do", "exit_code"}
    assert done.json["error"]["exit_code"] == 2


def test_deploy_tells_its_result_as_json_and_its_progress_on_stderr(work: Workplace, deployed: Path) -> None:
    done = work.run("deploy", "model.py:small", *QUICK, "-o", "again.trtship", "--json")
    assert done.code == 0, done.err
    assert set(done.json) == {"bundle", "up_to_date", "changed", "stages", "verdicts", "seconds", "choice", "inputs"}
    assert done.json["choice"] is None
    assert {frozenset(s) for s in done.json["stages"]} == {
        frozenset({"name", "cached", "seconds", "changed", "did", "made_in"})
    }
    assert [s["name"] for s in done.json["stages"]] == [
        "export", "original", "simplify", "optimize", "precision", "build", "verify"
    ]  # fmt: skip
    assert set(done.json["verdicts"][0]) == {
        "subject", "gate", "state", "reason", "runtime", "bound", "worst", "measures", "evaluation", "note",
        "inputs", "sizes", "limit",
    }  # fmt: skip
    assert "load model.py:small" in done.err
    assert "error" not in done.err


def test_run_tells_its_result_as_json(work: Workplace, deployed: Path) -> None:
    done = work.run("run", deployed, "picture.png", "picture.png", "--top", "2", "--json")
    assert done.code == 0, done.err
    assert set(done.json) == {"runtime", "pictures"}
    assert [set(picture) for picture in done.json["pictures"]] == [{"path", "top"}] * 2
    assert [set(guess) for guess in done.json["pictures"][0]["top"]] == [{"index", "label", "probability"}] * 2


def test_inspect_tells_its_result_as_json(work: Workplace, deployed: Path) -> None:
    done = work.run("inspect", deployed, "--json")
    assert done.code == 0, done.err
    assert set(done.json) == {"manifest", "evidence"}
    assert set(done.json["evidence"]) == {"export", "simplify", "optimize", "precision", "build"}
    assert done.json["manifest"] == json.loads((deployed / "manifest.json").read_bytes())
    assert set(done.json["manifest"]) == {
        "schema", "seal", "name", "created", "versions", "machine", "source", "precision", "inputs", "outputs",
        "plan_inputs", "plan_outputs", "ranges", "preprocess", "labels", "graph", "precision_graph", "plan", "family",
        "family_version", "reference_sizes", "bounds", "max_drop", "verdicts", "recipe", "files", "profiles", "gates",
        "tried", "rules",
    }  # fmt: skip


def test_verify_tells_its_result_as_json(work: Workplace, bundle: Path) -> None:
    done = work.run("verify", bundle, "--json")
    assert done.code == 0, done.err
    assert set(done.json) == {"bundle", "failed", "verdicts"}
    assert done.json["failed"] == 0
    assert {v["subject"] for v in done.json["verdicts"]} == {"graph fp32", "plan"}


def test_export_simplify_and_build_tell_their_results_as_json_whatever_the_model_prints(work: Workplace) -> None:
    (work / "chatty.py").write_text("import os\nprint('python')\nos.write(1, b'native')\n" + MODEL)
    exported = work.run("export", "chatty.py:small", "--exporter", "torchscript", "-o", "a.onnx", "--json")
    assert exported.code == 0, exported.err
    assert "python" in exported.err
    assert "native" in exported.err
    assert set(exported.json) == {"graph", "report"}
    assert {"exporter", "opset", "traced", "fell_back", "bound", "checks", "outputs"} <= set(exported.json["report"])
    simplified = work.run("simplify", "a.onnx", "-o", "b.onnx", "--json")
    assert simplified.code == 0, simplified.err
    assert set(simplified.json) == {"graph", "report"}
    assert {"kept", "why", "nodes_before", "nodes_after", "differences", "bound"} <= set(simplified.json["report"])
    built = work.run("build", "b.onnx", "--batch", "2", "-o", "c.plan", "--json")
    assert built.code == 0, built.err
    assert set(built.json) == {"plan", "report"}
    assert {"family", "version", "targets", "profiles", "seconds", "plan_mib"} <= set(built.json["report"])
    assert {path.name for path in work.folder.iterdir()} >= {"a.onnx", "b.onnx", "c.plan", "c.plan.log"}


def test_doctor_tells_its_result_as_json(work: Workplace) -> None:
    done = work.run("doctor", "--json")
    assert done.code in (0, 3), done.err
    assert {"ok", "findings", "abilities"} <= set(done.json)
    assert {"topic", "subject", "state", "found", "why", "mend"} <= set(done.json["findings"][0])
    assert {"what", "able", "why"} <= set(done.json["abilities"][0])


def test_quiet_says_nothing_but_the_result(work: Workplace, deployed: Path) -> None:
    done = work.run("run", deployed, "picture.png", "--quiet", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json["pictures"]


def test_a_failed_gate_is_exit_code_1(work: Workplace) -> None:
    command = ("export", "model.py:frozen", "--exporter", "torchscript", "-o", "new/deep/a.onnx")
    message = work.refuses(*command, code=1)
    assert "differs from PyTorch at B=1, while it was traced at B=2" in message


def test_a_machine_that_lacks_a_package_is_exit_code_3(work: Workplace) -> None:
    written(work / "a.onnx", SCALE)
    lacking = lacks(work, "onnx")
    message = work.refuses("export", "a.onnx", "-o", "b.onnx", code=3, env=lacking)
    assert "needs the package onnx, which is not installed" in message
    assert "pip install 'trtship[make]'" in message
    done = work.run("export", "a.onnx", "-o", "b.onnx", "--json", env=lacking)
    assert (done.code, done.json["error"]["type"]) == (3, "DependencyError")


def test_a_bug_is_exit_code_70_and_asks_for_a_report(work: Workplace) -> None:
    command = [sys.executable, "-c", BUG, "doctor"]
    done = subprocess.run(command, env=work.environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (70, "")
    assert "KeyError: 'a key that is not there'" in done.stderr
    assert "Traceback" not in done.stderr
    assert "--debug" in done.stderr
    again = subprocess.run(
        [*command, "--debug", "--json"], env=work.environment(), capture_output=True, text=True, check=False
    )
    assert again.returncode == 70
    assert "Traceback" in again.stderr
    assert json.loads(again.stdout)["error"]["exit_code"] == 70


def test_debug_shows_where_a_mistake_was_found(work: Workplace) -> None:
    done = work.run("inspect", "nowhere", "--debug")
    assert done.code == 2
    assert "Traceback" in done.err
    assert done.err.endswith("do:  trtship deploy makes one\n")


def test_a_package_that_trtship_itself_needs_is_named_and_no_bug(work: Workplace) -> None:
    assert "this Python lacks the package msgspec" in work.refuses(
        "inspect", "nowhere", code=3, env=lacks(work, "msgspec")
    )


def lacks(work: Workplace, package: str) -> dict[str, str]:
    """An environment whose Python finds no such package, as where it is not installed."""
    hidden = work.cache / f"no-{package}"
    hidden.mkdir(parents=True, exist_ok=True)
    name = f"No module named {package!r}"
    (hidden / f"{package}.py").write_text(f"raise ModuleNotFoundError({name!r}, name={package!r})")
    return {"PYTHONPATH": os.pathsep.join([str(hidden), work.environment()["PYTHONPATH"]])}


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["table", "json"])
def test_a_reader_that_leaves_early_is_no_error(work: Workplace, deployed: Path, more: list[str]) -> None:
    command = [sys.executable, "-m", "trtship", "inspect", str(deployed), *more]
    with subprocess.Popen(
        command, env=work.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read()
    assert process.returncode == 0, errors
    assert "error" not in errors


def test_a_stage_goes_on_when_nobody_reads_its_progress(work: Workplace, deployed: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = work.run("deploy", "model.py:small", *QUICK, "-o", "b.trtship", capture_output=False, stderr=writing,
                    stdout=subprocess.DEVNULL)  # fmt: skip
    os.close(writing)
    assert done.code == 0
    assert (work / "b.trtship" / "manifest.json").is_file()


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["table", "json"])
def test_a_full_stdout_is_told(work: Workplace, deployed: Path, more: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = work.run("inspect", deployed, *more, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.code == 2
    assert "cannot write the result to stdout\n  why: No space left on device" in done.err
    assert "Traceback" not in done.err


def test_a_terminal_without_unicode_gets_escapes(work: Workplace, deployed: Path) -> None:
    done = work.run("run", deployed, "picture.png", "n\xe4he.png", env={"PYTHONIOENCODING": "ascii"})
    assert done.code == 2
    assert "there is no picture n\\xe4he.png" in done.err
    assert work.run("inspect", deployed, env={"PYTHONIOENCODING": "ascii"}).code == 0


def test_a_file_name_that_is_no_utf8_is_escaped_in_json(work: Workplace, deployed: Path) -> None:
    done = work.run("run", deployed, os.fsdecode(b"\xff.png"), "--json")
    assert done.code == 2
    assert done.json["error"]["what"] == r"there is no picture \udcff.png"


def test_closed_streams_are_no_error(work: Workplace, deployed: Path) -> None:
    command = f'exec "{sys.executable}" -m trtship run "{deployed}" picture.png --json'
    for closed, where in (("2>&-", "stdout"), (">&-", "stderr")):
        done = subprocess.run(
            f"{command} {closed}", shell=True, cwd=work.folder, env=work.environment(), capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        if where == "stdout":
            assert json.loads(done.stdout)["pictures"]


def test_a_graph_is_simplified_in_place_when_asked(work: Workplace) -> None:
    graph = written(work / "a.onnx", SCALE)
    assert "--force" in work.refuses("simplify", "a.onnx", "-o", "a.onnx")
    assert work.run("simplify", "a.onnx", "-o", "a.onnx", "--force").code == 0
    assert graph.is_file()
