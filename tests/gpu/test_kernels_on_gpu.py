"""Compiled kernels are kept: the next process loads them, compiles nothing, and gives the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

RUNS = """
import sys, time, numpy as np, trtship
begun = time.perf_counter()
with trtship.load(sys.argv[1]) as session:
    result = session(np.load(sys.argv[2]))
    print(time.perf_counter() - begun)
np.save(sys.argv[3], result)
"""


def run(bundle: Path, feeds: Path, result: Path) -> float:
    """Seconds from `load` to the first result, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", RUNS, str(bundle), str(feeds), str(result)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_a_second_process_compiles_nothing_and_gives_the_same(
    swin_t: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    bundle, cache, feeds = swin_t("fp16"), tmp_path / "cache", tmp_path / "x.npy"
    monkeypatch.setenv("TRTSHIP_CACHE", str(cache))
    np.save(feeds, np.random.default_rng(2).standard_normal((8, 3, 224, 224), dtype=np.float32))
    cold = run(bundle, feeds, tmp_path / "cold.npy")
    (kept,) = (cache / "kernels").iterdir()
    before = kept.read_bytes()
    assert before.startswith(b"trtship kernels 1\n")
    warm = run(bundle, feeds, tmp_path / "warm.npy")
    record_property("to_first_result", {"cold": cold, "warm": warm})
    record_property("bytes", {"cold": len(before), "warm": len(kept.read_bytes())})
    assert kept.read_bytes() == before
    np.testing.assert_array_equal(np.load(tmp_path / "warm.npy"), np.load(tmp_path / "cold.npy"))


def test_damaged_kernels_are_discarded_and_compiled_anew(
    swin_t: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, cache, feeds = swin_t("fp16"), tmp_path / "cache", tmp_path / "x.npy"
    monkeypatch.setenv("TRTSHIP_CACHE", str(cache))
    np.save(feeds, np.random.default_rng(2).standard_normal((8, 3, 224, 224), dtype=np.float32))
    run(bundle, feeds, tmp_path / "first.npy")
    (kept,) = (cache / "kernels").iterdir()
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)
    run(bundle, feeds, tmp_path / "second.npy")
    assert kept.read_bytes() != bytes(data)
    np.testing.assert_array_equal(np.load(tmp_path / "second.npy"), np.load(tmp_path / "first.npy"))
