"""How passes are found and named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import trtship.passes
from trtship.errors import SpecError
from trtship.passes.registry import all_passes, find_passes, name_of, parse_passes

FILE = """
from trtship.passes.patch_embedding import PatchEmbedding  # not its own

class First(PatchEmbedding):
    name = "a first pass"
    order = -1

class Asked(PatchEmbedding):
    name = "asked for"
    order = None
"""


@pytest.fixture
def with_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "added.py").write_text(FILE)
    monkeypatch.setattr(trtship.passes, "__path__", [*trtship.passes.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "trtship.passes.added", raising=False)


def test_the_passes_run_in_their_order() -> None:
    orders = [one.order for one in all_passes()]
    assert len(orders) == len(set(orders))
    assert orders == sorted(order for order in orders if order is not None)
    names = parse_passes("all")
    assert names == tuple(map(name_of, all_passes()))
    assert names.index("windows-into-heads") < names.index("patch-embedding")


@pytest.mark.usefixtures("with_a_file")
def test_a_file_is_all_that_a_new_pass_needs() -> None:
    assert parse_passes("all")[:2] == ("a-first-pass", "windows-into-heads")
    assert parse_passes("patch-embedding,a-first-pass") == ("a-first-pass", "patch-embedding")


@pytest.mark.usefixtures("with_a_file")
def test_a_pass_without_an_order_runs_where_it_is_named_and_last() -> None:
    assert "asked-for" not in parse_passes("all")
    assert parse_passes("asked-for, patch-embedding") == ("patch-embedding", "asked-for")


def test_none_are_none_and_one_named_twice_is_one() -> None:
    assert parse_passes("none") == ()
    assert [one.name for one in find_passes(["patch-embedding", "patch-embedding"])] == ["patch embedding"]


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("window-into-heads", "windows-into-heads"), ("patch embedding", "patch-embedding"), ("", ""), ("all,none", "")],
)
def test_an_unknown_name_is_refused_with_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(SpecError, match="there is no pass") as caught:
        parse_passes(text)
    assert f"the nearest names are {nearest}" in caught.value.why
    assert "windows-into-heads" in caught.value.do


def test_finding_passes_loads_nothing_heavy() -> None:
    heavy = ("torch", "onnx", "onnx_ir", "onnxruntime", "onnxsim", "tensorrt", "tensorrt_rtx")
    code = (
        "import sys\nfrom trtship.passes.registry import parse_passes\nparse_passes('all')\n"
        f"print(sorted(set({heavy}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
