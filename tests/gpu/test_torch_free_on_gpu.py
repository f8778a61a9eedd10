"""A plan runs and is verified in a process that can import nothing of what makes bundles."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from trtship.needs import BROUGHT_BY
from trtship.verify.verdict import REL_L2

WITHOUT_MAKERS = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BROUGHT_BY["make"]!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""
RUNS = """
import sys, numpy as np, trtship
with trtship.load(sys.argv[1], runtime="tensorrt") as session:
    np.save(sys.argv[3], session(np.load(sys.argv[2])))
"""
VERIFIES = """
import sys
from trtship.cli.main import main
main(["verify", sys.argv[1], "--no-record", "--json"])  # a probe that fails is another test's business
"""


def run(code: str, *arguments: Path) -> str:
    """What `code` says on stdout, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_without_torch_and_onnx_a_plan_gives_the_same(swin_t: Callable[[str], Path], tmp_path: Path) -> None:
    bundle, feeds = swin_t("fp16"), tmp_path / "x.npy"
    np.save(feeds, np.random.default_rng(3).standard_normal((8, 3, 224, 224), dtype=np.float32))
    run(RUNS, bundle, feeds, tmp_path / "full.npy")
    run(WITHOUT_MAKERS + RUNS, bundle, feeds, tmp_path / "bare.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "bare.npy"), np.load(tmp_path / "full.npy"))


def test_without_torch_and_onnx_a_plan_is_verified(swin_t: Callable[[str], Path]) -> None:
    verdicts = json.loads(run(WITHOUT_MAKERS + VERIFIES, swin_t("fp16")))["verdicts"]
    plan = {verdict["gate"]: verdict for verdict in verdicts if verdict["subject"] == "plan"}
    assert plan[REL_L2]["state"] == "passed"
    assert plan[REL_L2]["runtime"].startswith("tensorrt")
